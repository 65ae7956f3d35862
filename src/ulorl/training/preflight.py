"""Preflight: reward, problems, tokenizer and prompts of a run, checked before any model is loaded."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from ulorl.answers.normalisation import comparable_question
from ulorl.backends import torchrun
from ulorl.backends.ray.ray_preflight import check_ray
from ulorl.config.data_config import DataConfig
from ulorl.config.tree import Config
from ulorl.data.problems import leave_out, load_located, source_of
from ulorl.data.prompts import PromptLimits, encode_each
from ulorl.engines.factory import check_decodable, check_engine, pick_device
from ulorl.error_codes import ErrorCode
from ulorl.errors import CombinedError, ErrorCollector, UserError
from ulorl.learner.learner_files import is_sharded
from ulorl.learner.ulysses_checks import check_ulysses
from ulorl.models.attention import require_attention, set_attention
from ulorl.models.lora import add_lora, require_peft
from ulorl.models.meta_model import make_meta_model
from ulorl.models.model_loading import check_model, recompute_activations
from ulorl.models.model_source import ModelSource, context_length
from ulorl.rewards.factory import make_reward
from ulorl.rewards.reward import Reward
from ulorl.rewards.scorer import Scorer
from ulorl.runs import run_folder
from ulorl.runs.trackers import require_trackers
from ulorl.training.checkpoint import resume_command
from ulorl.training.problem_fingerprint import problem_fingerprint
from ulorl.training.specifications import model_source, prompt_format
from ulorl.types import Problem, Prompted


@dataclass(frozen=True)
class Inputs:
    """The checked inputs of a run, besides its model."""

    source: ModelSource
    problems: Sequence[Prompted]
    held_out: Sequence[Prompted]
    scorer: Scorer

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self.source.tokenizer

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the training problems and their order, on which the meaning of a data cursor depends."""
        return problem_fingerprint([problem for problem, _ in self.problems])

    def longest(self, cfg: Config) -> int:
        """Return the tokens of the longest prompt with the longest output that a run or an evaluation can need."""
        held_out = max((len(prompt) for _, prompt in self.held_out), default=0)
        evaluation = held_out + (cfg.eval.max_tokens or cfg.rollout.max_tokens)
        if not self.problems:  # an evaluation without training
            return evaluation
        rollout = max(len(prompt) for _, prompt in self.problems) + cfg.rollout.max_tokens
        return max(rollout, evaluation)


def load_inputs(cfg: Config, checkpoint: Path | None = None) -> Inputs:
    """Check reward, problems, tokenizer and prompts, all that a user can get wrong, without loading a model.

    What costs nothing is checked first, then files, then what needs them all; as many errors as possible are reported
    at once. checkpoint: its folder, whose model folder is read in place of `model.path`. Raises UserError,
    which names the key, file, record or tensor.
    """
    source = model_source(cfg, str(checkpoint / "model") if checkpoint else None)
    sharded = checkpoint is not None and is_sharded(checkpoint)
    disable_progress_bar()  # of transformers, for loading and saving
    if checkpoint is None:  # a run that began before this was refused may end as it began
        _check_trained_dtype(cfg)
    reward = _check_settings(cfg, processes=_processes(cfg))
    files, prompts = ErrorCollector(), ErrorCollector()
    with files:
        problems, places = load_located(cfg.data)
    with files, _of_held_out():
        held_out, held_out_places = load_located(cfg.eval_data(), held_out=True) if cfg.eval.data else ([], {})
    with files:
        _ = source.config  # later checks that need it would raise the same error again
        with files:
            model = _check_model(cfg, source, weights=not sharded)
        with files:
            tokenizer = source.tokenizer
    files.raise_errors()
    _check_ids(source, model)
    _check_lengths(source, {"rollout": cfg.rollout.max_tokens, "eval": cfg.eval.max_tokens if cfg.eval.data else 0})
    with prompts:
        prompted = _prompted(problems, places, reward, tokenizer, cfg.data, model, cfg.rollout.max_tokens)
    with prompts, _of_held_out():
        asked = _asked(cfg, held_out, held_out_places, reward, tokenizer, model)
    prompts.raise_errors()
    scorer = _scorer(cfg, reward, tokenizer, resume=resume_command(Path(cfg.run.dir)))
    return Inputs(source, without_held_out(prompted, held_out), asked, scorer)


def load_evaluation(cfg: Config) -> Inputs:
    """Check what an evaluation without training needs, as `load_inputs` does. The result has no problems to train on.

    Raises UserError.
    """
    if not cfg.eval.data:
        raise UserError(
            "eval.data is missing: it says which problems are held out, for example eval.data.split=test",
            code=ErrorCode.CONFIG_MISSING_KEY,
            key="eval.data",
        )
    source = model_source(cfg)
    disable_progress_bar()
    reward, files = _check_settings(cfg), ErrorCollector()
    with files, _of_held_out():
        held_out, places = load_located(cfg.eval_data(), held_out=True)
    with files:
        model, tokenizer = _check_model(cfg, source, weights=True), source.tokenizer
    files.raise_errors()
    _check_ids(source, model)
    _check_lengths(source, {"eval": cfg.eval.max_tokens or cfg.rollout.max_tokens})
    with _of_held_out():
        asked = _asked(cfg, held_out, places, reward, tokenizer, model)
    return Inputs(source, (), asked, _scorer(cfg, reward, tokenizer, resume=""))


def _asked(
    cfg: Config,
    held_out: Sequence[Problem],
    places: Mapping[str, str],
    reward: Reward,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
) -> list[Prompted]:
    """Return the held-out problems that are used, with their prompts."""
    longest = cfg.eval.max_tokens or cfg.rollout.max_tokens
    return _prompted(held_out[: cfg.eval.problems], places, reward, tokenizer, cfg.eval_data(), model, longest)


def _processes(cfg: Config) -> int:
    """Return how many processes will share the learner with this one, or 1 where this one has no part of it."""
    return 1 if cfg.backend.kind == "ray" else max(torchrun.world_size(), cfg.backend.learner_ranks or 1)


def _check_settings(cfg: Config, *, processes: int = 1) -> Reward:
    """Check what needs no files, and return the reward. Raises UserError."""
    errors = ErrorCollector()
    with errors:
        _check_device(cfg)
    with errors:
        require_trackers(cfg.log)
    with errors:
        check_engine(cfg.engine, processes=processes)
    with errors:
        require_peft(cfg.model.lora)
    with errors:
        reward = make_reward(cfg.reward, cache=Path(cfg.run.dir) / run_folder.VERDICTS)
    errors.raise_errors()
    return reward


def _check_trained_dtype(cfg: Config) -> None:
    """Refuse to train bfloat16 weights. bfloat16 has 8 significant bits: a step of AdamW, about optim.lr, rounds to
    nothing on a weight that is 512 times as large, and a sum of gradients takes in no micro-batch 512 times smaller
    than itself. The adapters of LoRA are float32."""
    if cfg.model.dtype == "bfloat16" and not cfg.model.lora.rank:
        raise UserError(
            f"model.dtype=bfloat16: bfloat16 weights of .02 lose steps below 6e-5, and AdamW's are about optim.lr="
            f"{cfg.optim.lr:g}; use model.dtype=float32 with optim.autocast=bfloat16, which computes in bfloat16, or "
            "train adapters with model.lora.rank",
            code=ErrorCode.CONFIG_CONFLICT,
            key="model.dtype",
        )


def _scorer(cfg: Config, reward: Reward, tokenizer: PreTrainedTokenizerBase, *, resume: str) -> Scorer:
    return Scorer(
        reward,
        tokenizer,
        retries=cfg.reward.retries,
        max_unscored=cfg.reward.max_unscored,
        resume=resume,
    )


def check_run_dir(cfg: Config) -> str:
    """Return a line that says what `run.dir` holds. Raises UserError when it cannot be written, or holds anything but
    this run."""
    path = Path(cfg.run.dir)
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise _unusable(path, f"cannot be used ({error.strerror})") from None
    there = next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))
    if not there.is_dir():
        raise _unusable(path, f"{there} is a file, not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise _unusable(path, f"{there} is not writable")
    if not run_folder.holds_run(path):
        run_folder.check_free(cfg)
        return f"run folder: {path}, new"
    run_folder.changes(cfg)
    if run_folder.finished(path) == cfg.steps:
        raise UserError(
            f"run.dir={path}: holds this run, finished; choose another run.dir, or train with --overwrite",
            code=ErrorCode.RUN_FOLDER_TAKEN,
            file=path,
            key="run.dir",
        )
    return f"run folder: {path}, which holds this run, unfinished: training resumes"


def _unusable(path: Path, why: str) -> UserError:
    return UserError(f"run.dir={path}: {why}", code=ErrorCode.FILE_NOT_WRITABLE, file=path, key="run.dir")


def repetition(problems: Sequence[Prompted]) -> str:
    """Return a remark on questions that several problems ask, "" without any.

    Repetition may be intended, to give questions weight. Different answers are suspect, but one answer can be written
    in many ways.
    """
    answers: dict[str, list[str]] = {}
    for problem, _ in problems:
        answers.setdefault(problem.prompt, []).append(problem.answer)
    repeated = [given for given in answers.values() if len(given) > 1]
    differ = sum(len(set(given)) > 1 for given in repeated)
    return f"; {len(repeated)} questions occur more than once, {differ} with different answers" * bool(repeated)


@contextmanager
def _of_held_out() -> Iterator[None]:
    """Make UserErrors raised in the block say that they are about the held-out problems."""
    with _prefixed("eval.data", lambda key: f"eval.{key}" if key.startswith("data") else key or "eval.data"):
        yield


@contextmanager
def _prefixed(prefix: str, place: Callable[[str], str] = lambda key: key) -> Iterator[None]:
    """Put `prefix` in front of the messages of UserErrors raised in the block; `place` maps their keys."""
    try:
        yield
    except UserError as error:
        parts = [
            UserError(f"{prefix}: {part}", code=part.code, file=part.file, key=place(part.key), record=part.record)
            for part in error.each()
        ]
        raise (parts[0] if len(parts) == 1 else CombinedError(parts)) from error


def _check_device(cfg: Config) -> None:
    if cfg.backend.kind == "ray":
        check_ray(cfg.backend)
        return  # the devices are those of the cluster; whether it has them shows when they are reserved
    name = cfg.model.device
    if name.startswith("cuda"):
        there, number = torch.cuda.device_count(), int(name.partition(":")[2] or 0)
        if not there:
            raise _no_device(name, "torch finds no CUDA device here; use auto or cpu")
        if number >= there:
            raise _no_device(name, f"torch finds {there} CUDA devices here, counted from 0")
    require_attention(cfg.model.attention, pick_device(name))


def _no_device(name: str, why: str) -> UserError:
    return UserError(f"model.device={name}: {why}", code=ErrorCode.DEVICE_UNAVAILABLE, key="model.device")


def _check_model(cfg: Config, source: ModelSource, *, weights: bool) -> PreTrainedModel:
    """Return the model without weights, after every change that a run makes to it. Raises UserError when one of them
    is impossible.

    weights: whether they are in the folder; those of a sharded checkpoint are not."""
    model = check_model(source) if weights else make_meta_model(source)
    with _prefixed(source.path):
        check_decodable(cfg.engine, model)
        check_ulysses(model, cfg.optim.sequence_parallel, cfg.model.attention)
    set_attention(model, cfg.model.attention)
    if cfg.optim.recompute:
        recompute_activations(model)
    if cfg.model.lora.rank:
        add_lora(model, cfg.model.lora)
    return model


def _check_ids(source: ModelSource, model: PreTrainedModel) -> None:
    """Raise UserError when the tokenizer belongs to another model."""
    _ = source.eos_ids  # raises when there are none
    vocabulary, pad = model.get_input_embeddings().weight.shape[0], source.tokenizer.pad_token_id
    if pad is not None and pad >= vocabulary:
        raise UserError(
            f"{source.path}: the tokenizer's pad token has the id {pad}, but the model's vocab_size is {vocabulary}: "
            "the tokenizer in the folder is another model's",
            code=ErrorCode.MODEL_TOKENIZER,
            file=source.path,
        )


def _check_lengths(source: ModelSource, longest_outputs: Mapping[str, int]) -> None:
    """Raise UserError when outputs of the longest length, by section, do not fit the model's context with any
    prompt."""
    context = source.context_length or sys.maxsize
    for key, longest in longest_outputs.items():
        if longest >= context:
            raise UserError(
                f"{key}.max_tokens={longest}: a prompt and so long an output do not fit the model's context of "
                f"{context} (max_position_embeddings of {source.path}); lower it, or see model.rope",
                code=ErrorCode.MODEL_CONTEXT,
                key=f"{key}.max_tokens",
            )


def _prompted(
    problems: Sequence[Problem],
    places: Mapping[str, str],
    reward: Reward,
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    model: PreTrainedModel,
    max_tokens: int,
) -> list[Prompted]:
    """Return the problems with their prompts, without those that `data.bad=skip` leaves out: with a prompt that cannot
    be used, or that the reward cannot judge."""
    encoded = encode_each(
        problems,
        tokenizer,
        prompt_format(data),
        PromptLimits(
            max_prompt_tokens=data.max_prompt_tokens,
            context=context_length(model) or sys.maxsize,  # a model that names no limit
            max_tokens=max_tokens,
            vocabulary=model.get_input_embeddings().weight.shape[0],
        ),
        places,
    )
    found = [(p, _unjudged(reward, p, places) or prompt) for p, prompt in zip(problems, encoded, strict=True)]
    leave_out([prompt for _, prompt in found if isinstance(prompt, UserError)], data)
    kept = [(problem, prompt) for problem, prompt in found if not isinstance(prompt, UserError)]
    if problems and not kept:
        raise UserError(
            f"{source_of(data)}: every problem is bad, as warned of above",
            code=ErrorCode.PROMPT_UNUSABLE,
            file=source_of(data),
        )
    return kept


def _unjudged(reward: Reward, problem: Problem, places: Mapping[str, str]) -> UserError | None:
    """Return why the reward cannot judge a problem, None for one that it can."""
    try:
        reward.check(problem)
    except UserError as error:
        place = places.get(problem.id, problem.id)
        named = f"{place}: {error}" if place != problem.id else str(error)
        return UserError(named, code=error.code, file=error.file, key=error.key, record=place)
    return None


def without_held_out(prompted: Sequence[Prompted], held_out: Sequence[Problem]) -> list[Prompted]:
    """Return the problems that ask no held-out question, ignoring spaces, closing punctuation, letter case and
    dollar signs. Raises UserError when no problem is left.

    held_out: all held-out problems, also those that `eval.problems` leaves out of the evaluations of this run.
    """
    asked = {comparable_question(problem.prompt) for problem in held_out}
    left = [pair for pair in prompted if comparable_question(pair[0].prompt) not in asked]
    if not left:
        raise UserError(
            "eval.data: every training problem is also a held-out problem; give eval.data another path, split or seed",
            code=ErrorCode.DATA_HELD_OUT,
            key="eval.data",
        )
    return left
