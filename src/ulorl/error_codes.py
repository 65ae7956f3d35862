"""The stable codes of the errors that a user can fix, each with its cause and its fix. `docs/errors.md` is made from
this table by `docs/make_errors.py`. A code is never reused for another meaning."""

from __future__ import annotations

from enum import StrEnum


class ErrorCode(StrEnum):
    """One kind of user error: its value is the stable code, for example `config-unknown-key`."""

    cause: str
    fix: str

    def __new__(cls, code: str, cause: str, fix: str) -> ErrorCode:
        member = str.__new__(cls, code)
        member._value_ = code
        member.cause, member.fix = cause, fix
        return member

    # The configuration and the command line.
    CONFIG_UNKNOWN_KEY = (
        "config-unknown-key",
        "A recipe or an override sets a key that does not exist, or that does not apply to the chosen kind.",
        "Correct the key; the message names the nearest one, or the keys that exist at this place.",
    )
    CONFIG_RENAMED_KEY = (
        "config-renamed-key",
        "A recipe or an override uses the name that a key had in an earlier version.",
        "Use the new name that the message gives.",
    )
    CONFIG_MISSING_KEY = (
        "config-missing-key",
        "A required key is not set.",
        "Set the key in the recipe, or as `key=value` on the command line.",
    )
    CONFIG_BAD_VALUE = (
        "config-bad-value",
        "A key has a value of the wrong type, outside its range, or unusable as text.",
        "Give a value as the message and `docs/configuration.md` describe it.",
    )
    CONFIG_CONFLICT = (
        "config-conflict",
        "Two settings exclude each other.",
        "Change one of the settings that the message names.",
    )
    CONFIG_FIXED_ON_RESUME = (
        "config-fixed-on-resume",
        "An override changes a setting that a run must keep from its start to its end.",
        "Leave the setting as it was, or start another run in another `run.dir`.",
    )
    RECIPE_NOT_FOUND = (
        "recipe-not-found",
        "A recipe named on the command line does not exist.",
        "Correct the path, or give the name of a recipe of the package; `ulorl recipes` lists them.",
    )
    RECIPE_UNREADABLE = (
        "recipe-unreadable",
        "A recipe, or the config.json of a run, is not valid TOML, JSON or UTF-8 text, or cannot be read.",
        "Correct the file at the place that the message names.",
    )
    COMMAND_LINE = (
        "command-line",
        "An argument or an option of a command is missing, unknown or unusable.",
        "Run the command with `--help`, and correct the argument that the message names.",
    )
    EXTRA_MISSING = (
        "extra-missing",
        "A feature needs a package that is not installed.",
        'Install the extra that the message names, for example `pip install "ulorl[tasks]"`.',
    )
    DEVICE_UNAVAILABLE = (
        "device-unavailable",
        "`model.device` or `model.attention` needs a GPU, or a kernel, that is not there.",
        "Use `model.device=auto` or `cpu`, and `model.attention=sdpa`.",
    )
    # Files in general.
    FILE_NOT_WRITABLE = (
        "file-not-writable",
        "A file or folder cannot be written: the disk is full, the folder is read-only or does not exist.",
        "Free space or give permission, then run the same command again; what was complete before is still there.",
    )
    OUTPUT_EXISTS = (
        "output-exists",
        "The output folder of a command is not empty, or a file that it would write is there.",
        "Name another folder, or give `--overwrite` where the command has it.",
    )
    # Data.
    DATA_NOT_FOUND = (
        "data-not-found",
        "No file matches `data.path`, or the hub has no such dataset.",
        "Correct the path, the pattern or the dataset's name; the hub needs a connection or a cached copy.",
    )
    DATA_UNREADABLE = (
        "data-unreadable",
        "A data file is damaged, or is not JSON Lines, JSON, Parquet or CSV in UTF-8.",
        "Correct or rewrite the file at the record that the message names.",
    )
    DATA_BAD_RECORD = (
        "data-bad-record",
        "A record lacks a field, or a field has a value of the wrong type or form.",
        "Correct the record, name the right field (`data.question`, `data.answer`), or skip bad records "
        "(`data.bad=skip`).",
    )
    DATA_TOO_FEW = (
        "data-too-few",
        "A source is empty, or holds fewer problems or pairs than are asked for.",
        "Give more data, or ask for fewer problems.",
    )
    DATA_GENERATOR = (
        "data-generator",
        "A problem generator does not know a task or a setting, or refuses its value.",
        "Correct `data.task` or `data.settings` (of `ulorl tiny make`: TASK or `settings`); `docs/tasks.md` lists the "
        "tasks of reasoning-gym.",
    )
    DATA_HELD_OUT = (
        "data-held-out",
        "Every training problem is a held-out problem too.",
        "Give `eval.data` another path, split or seed.",
    )
    PROMPT_UNUSABLE = (
        "prompt-unusable",
        "A prompt is empty, too long for `data.max_prompt_tokens` or the model's context, or cannot be encoded.",
        "Remove the problem, raise the limit, or correct the template.",
    )
    CHAT_TEMPLATE = (
        "chat-template",
        "The tokenizer's chat template fails, or has no place for a system message.",
        "Set `data.chat=off`, or move the text of `data.system` into `data.template`.",
    )
    # Models.
    MODEL_NOT_FOUND = (
        "model-not-found",
        "`model.path` is neither a transformers folder nor a name that the hub knows.",
        "Give a folder with config.json and safetensors files, a hub name, `ulorl:tiny` or `ulorl:tiny-maze`.",
    )
    MODEL_CONFIG = (
        "model-config",
        "The config.json or generation_config.json of a model folder is damaged, or describes no usable model.",
        "Copy or download the folder again, or correct the field that the message names.",
    )
    MODEL_WEIGHTS = (
        "model-weights",
        "The weights of a model folder are missing, damaged, not finite, or of another shape than config.json says.",
        "Copy or download the folder again; only safetensors files are read.",
    )
    MODEL_UNSUPPORTED = (
        "model-unsupported",
        "The model is not a causal language model, or has a feature that a setting does not support.",
        "Use another model, or change the setting that the message names.",
    )
    MODEL_REMOTE_CODE = (
        "model-remote-code",
        "The model folder contains Python code, which is not run unless you ask for it.",
        "Set `model.trust_remote_code=true` if you trust the code.",
    )
    MODEL_CONTEXT = (
        "model-context",
        "A prompt with its longest output does not fit the model's context.",
        "Lower `rollout.max_tokens` or `eval.max_tokens`, or extend the context with `model.rope`.",
    )
    MODEL_TOKENIZER = (
        "model-tokenizer",
        "The tokenizer is missing or damaged, belongs to another model, or names no EOS token.",
        "Save the right tokenizer into the folder, with an eos_token.",
    )
    MODEL_ADAPTERS = (
        "model-adapters",
        "LoRA adapters do not fit the model or the settings of the run.",
        "Correct `model.lora`, or take the adapters that belong to the model.",
    )
    # Engines and the learner.
    ENGINE_SETTING = (
        "engine-setting",
        "An engine does not take a setting.",
        "Correct the setting of `[engine]` that the message names.",
    )
    ENGINE_MODEL = (
        "engine-model",
        "The chosen engine cannot decode this model exactly.",
        "Use `engine.kind=vllm`, or another model.",
    )
    ENGINE_FAILED = (
        "engine-failed",
        "The engine failed several times in a row (`engine.max_faults`).",
        "Remove the cause that the message names, then resume the run.",
    )
    ENGINE_MISMATCH = (
        "engine-mismatch",
        "The log-probs of engine and learner differ by more than `engine.tolerance`.",
        "Check that both have the same weights, dtype and context scaling; do not train on.",
    )
    LEARNER_DIVERGED = (
        "learner-diverged",
        "The loss or the gradient was not finite in several mini-batches in a row (`optim.max_skipped`).",
        "Resume from the last checkpoint with a lower `optim.lr`, as the message shows.",
    )
    LEARNER_LOST = (
        "learner-lost",
        "A process of the learner ended (torchrun), or several in a row died or hung without a new checkpoint (Ray).",
        "Remove the cause that the message names, such as too little memory, then resume the run.",
    )
    CLUSTER_UNAVAILABLE = (
        "cluster-unavailable",
        "The Ray cluster cannot be reached, or has too few GPUs or CPUs for the run.",
        "Start the cluster or correct `backend.address`; lower `backend.ranks` or `backend.engines`, or add machines.",
    )
    # Rewards, verifiers and clients.
    REWARD_FUNCTION = (
        "reward-function",
        "`reward.function` cannot be imported or called, or returns neither 0 nor 1; a task's checker returns no bool.",
        "Correct the function or the checker, or the `module:name` that names it.",
    )
    REWARD_PROBLEM = (
        "reward-problem",
        "A problem lacks what the chosen reward needs to judge it.",
        "Choose the reward that goes with the data, or add the field that the message names.",
    )
    REWARD_FAILED = (
        "reward-failed",
        "The reward failed for several samples in a row (`reward.max_unscored`).",
        "Remove the cause that the message names, then resume the run.",
    )
    VERIFIER_PROMPT = (
        "verifier-prompt",
        "The prompt of a generative verifier cannot be read, or lacks a placeholder.",
        "Give a text file with {question}, {reference} and {answer}, or one of the prompts of the package.",
    )
    VERIFIER_TRAINING = (
        "verifier-training",
        "The pairs or the settings do not allow a verifier to be trained.",
        "Change the pairs or the option that the message names.",
    )
    SERVER_FAILED = (
        "server-failed",
        "An OpenAI-compatible server refuses the requests, or fails for several requests in a row.",
        "Check the server, `base_url`, the model's name and the API key, then run the same command again.",
    )
    API_KEY_MISSING = (
        "api-key-missing",
        "The environment variable with the API key is not set.",
        "Set the variable that the message names, or `base_url` of a server without keys.",
    )
    ADDRESS_UNAVAILABLE = (
        "address-unavailable",
        "A server cannot listen: another process uses the port, or this machine does not have the address.",
        "Give another `--port` or `--host`, or stop the process that uses the port.",
    )
    CACHE_UNUSABLE = (
        "cache-unusable",
        "The file that keeps a model's outputs is damaged or cannot be written.",
        "Remove the file, or free space.",
    )
    # Runs.
    RUN_NOT_FOUND = (
        "run-not-found",
        "The folder does not exist, or is not a run folder.",
        "Give the `run.dir` of a run.",
    )
    EVALUATION_TAKEN = (
        "evaluation-taken",
        "The folder of an evaluation, under `--out`, holds another evaluation, or its settings.json cannot be read.",
        "Give another `--out`, or replace the evaluation with `--overwrite`.",
    )
    EVALUATION_LOCKED = (
        "evaluation-locked",
        "Another process writes the evaluation of this model and suite, under the same `--out`.",
        "Wait for it to end, or give another `--out`.",
    )
    RUN_FOLDER_TAKEN = (
        "run-folder-taken",
        "`run.dir` holds another run, a finished run, or files that are not a run.",
        "Choose another `run.dir`, or give `--overwrite` to replace a run.",
    )
    RUN_LOCKED = (
        "run-locked",
        "Another process uses this run folder.",
        "Wait for it to end, or choose another `run.dir`.",
    )
    RUN_DAMAGED = (
        "run-damaged",
        "A file of a run's folder is damaged.",
        "Correct or remove what the message names.",
    )
    RUN_NO_MODEL = (
        "run-no-model",
        "The run has not saved a trained model yet.",
        "Let the run finish first.",
    )
    RUN_PROBLEMS_CHANGED = (
        "run-problems-changed",
        "The training problems differ from those that the run started with.",
        "Restore the data as it was, or start another run.",
    )
    CHECKPOINT_MISSING = (
        "checkpoint-missing",
        "The run has no checkpoint yet, or its checkpoints were removed.",
        "Start the run again, with `--overwrite` if it is finished.",
    )
    CHECKPOINT_DAMAGED = (
        "checkpoint-damaged",
        "The newest checkpoint cannot be read.",
        "Remove it to resume from the checkpoint before.",
    )
    CHECKPOINT_FORMAT = (
        "checkpoint-format",
        "The checkpoint was written by another version of UloRL.",
        "Resume with that version, or start a new run from the model inside the checkpoint.",
    )
    TRACKER_UNAVAILABLE = (
        "tracker-unavailable",
        "W&B, trackio or MLflow is not installed, or does not start.",
        "Install the extra, log in, or switch the tracker off.",
    )
    # Plans and benchmarks.
    PLAN_INPUT = (
        "plan-input",
        "A plan was given a latency profile, lengths or limits that it cannot use.",
        "Correct the option or the file that the message names.",
    )
    BENCH_INPUT = (
        "bench-input",
        "A benchmark was given lengths, figures or options that it cannot use.",
        "Correct the option or the file that the message names.",
    )
    REPRODUCE_RUN_FAILED = (
        "reproduce-run-failed",
        "One of the runs that `ulorl reproduce` trains ended with an error.",
        "Remove the cause that the log file gives; the same command continues.",
    )
