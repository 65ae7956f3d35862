"""`ulorl verifier ...`. Importing this module does not import torch."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Annotated, Literal

import typer

from ulorl.cli.output_options import check_output_file
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError

app = typer.Typer(help="The generative verifier: its data, training and accuracy (section 3.3).", no_args_is_help=True)


def _finite(value: float) -> float:
    """Refuse nan, which click accepts in every range."""
    if not isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


Sources = Annotated[
    list[str] | None,
    typer.Argument(metavar="SOURCE...", help="files, glob patterns, hub datasets or names of [sources]"),
]
SourceTables = Annotated[
    list[Path] | None, typer.Option(metavar="FILE", help="TOML with [sources.NAME], as of ulorl data clean")
]
HeldOut = Annotated[
    float, typer.Option(min=0, max=1, callback=_finite, help="share of the problems to hold out; 0: none, 1: all")
]


@app.command()
def data(
    arguments: Sources = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="the folder to write")] = Path("pairs"),
    config: SourceTables = None,
    per_problem: Annotated[int, typer.Option(min=2, help="pairs of a problem, at most")] = 4,
    held_out: HeldOut = 0.1,
    seed: Annotated[int, typer.Option(min=0, help="the same seed and sources give the same pairs")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the files that DIR holds already")] = False,
) -> None:
    """Make labelled pairs from problems with reference answers: equivalent ones and look-alikes, split by problem.

    ulorl verifier data raw/*.jsonl --out pairs
    """
    if find_spec("inflect") is None:
        message = 'verifier data needs inflect: pip install "ulorl[verifier]"'
        raise UserError(message, code=ErrorCode.EXTRA_MISSING)
    from ulorl.cleaning.cleaning_config import CleaningConfig
    from ulorl.common.progress import ProgressBars
    from ulorl.config.loading import load_class
    from ulorl.verifier.pair_dataset import write_pair_files
    from ulorl.verifier.pair_making import PairSettings

    tables = load_class(CleaningConfig, config or []).sources
    settings = PairSettings(per_problem=per_problem, seed=seed)
    with ProgressBars() as bars:
        done = write_pair_files(
            arguments or [], out, settings, tables=tables, held_out=held_out, overwrite=overwrite, bars=bars
        )
    counts = done.counts
    print(f"{counts['used']} of {counts['problems']} problems gave pairs; {counts['unreadable']} could not be read")
    for side, path in (("train", done.train), ("held_out", done.held_out)):
        none = f"not written, --held-out {held_out:g} leaves it empty"
        print(f"{path}: {f'{counts[side]} pairs' if counts[side] else none}")
    print(done.card)


Pairs = Annotated[list[str], typer.Argument(metavar="PAIRS...", help="JSONL, JSON or Parquet files, glob patterns")]
Base = Annotated[str, typer.Option(metavar="FOLDER", help="the causal LM to train: a folder or hub name")]
Out = Annotated[Path, typer.Option(metavar="FOLDER", help="the verifier's folder")]
Prompt = Annotated[str, typer.Option(help="short, judge, or a text file as of reward.verifier.prompt")]
QuestionChars = Annotated[int, typer.Option(min=0, help="show only the end of longer questions; 0: all")]
Chat = Annotated[
    Literal["plain", "own"], typer.Option(help="plain: the prompt and nothing else; own: the model's chat template")
]
MaxTokens = Annotated[int, typer.Option(min=1, help="longer pairs are left out, and counted")]
Epochs = Annotated[float, typer.Option(min=0.01, callback=_finite, help="passes over the pairs")]
MaxPairs = Annotated[int, typer.Option(min=0, help="train on so many, drawn with the seed; 0: all")]
Minutes = Annotated[float, typer.Option(min=0, callback=_finite, help="stop after so many minutes; 0: no limit")]
SaveMinutes = Annotated[
    float, typer.Option(min=0, callback=_finite, help="minutes between copies of the model; 0: at the end only")
]
Batch = Annotated[int, typer.Option(min=1, help="pairs of a step")]
LearningRate = Annotated[float, typer.Option(min=0, callback=_finite, help="of AdamW after the warm-up; falls to 0")]
Layers = Annotated[int, typer.Option(min=0, help="train the uppermost layers only; 0: all weights")]
LoraRank = Annotated[int, typer.Option(min=0, help="train adapters of this rank, merged at the end; 0: none")]
Bf16 = Annotated[bool, typer.Option("--bf16", help="matrix products in bfloat16: GPUs, AVX512_BF16, AMX")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="the same seed, pairs and machine give the same weights")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace the verifier that FOLDER holds")]


@app.command()
def train(
    pairs: Pairs,
    model: Base,
    out: Out,
    prompt: Prompt = "short",
    question_chars: QuestionChars = 120,
    chat: Chat = "plain",
    max_tokens: MaxTokens = 256,
    epochs: Epochs = 1.0,
    max_pairs: MaxPairs = 0,
    minutes: Minutes = 0.0,
    save_minutes: SaveMinutes = 10.0,
    batch: Batch = 32,
    lr: LearningRate = 1e-4,
    layers: Layers = 0,
    lora_rank: LoraRank = 0,
    bf16: Bf16 = False,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune a causal LM on labelled pairs, with the verdict as its next token. Needs the extra verifier.

    ulorl verifier train pairs/train.jsonl --model models/smollm2-135m-instruct --out models/verifier
    """
    from ulorl.verifier.pairs import read_pairs

    given = read_pairs(pairs)  # before the slow imports
    from ulorl.verifier.fine_tune import train as fine_tune
    from ulorl.verifier.verifier_config import VerifierTrainingConfig

    settings = VerifierTrainingConfig(
        prompt=prompt, question_chars=question_chars, chat=chat, max_tokens=max_tokens, epochs=epochs,
        max_pairs=max_pairs, minutes=minutes, save_minutes=save_minutes, batch=batch, lr=lr, layers=layers,
        lora_rank=lora_rank, bf16=bf16, seed=seed,
    )  # fmt: skip
    done = fine_tune(given, model, out, settings, overwrite=overwrite)
    print(done.summary(max_tokens))
    if done.interrupted:
        print(f"\ninterrupted; {out} holds the model as it was", file=sys.stderr)
        sys.exit(130)


Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="PAIRS... [key=value]...",
        help="files of pairs, or of graded outputs (docs/verifier.md); then keys of reward.verifier",
    ),
]
Trained = Annotated[str, typer.Option(metavar="MODEL", help="a trained verifier's folder, or a model of kind=endpoint")]
Untrained = Annotated[str, typer.Option(metavar="MODEL", help="an untrained model to compare it with")]
UntrainedPrompt = Annotated[str, typer.Option(help="the untrained model's prompt: judge, short or a file")]
Limit = Annotated[int, typer.Option(min=0, help="use so many pairs, always the same random ones; 0: all")]
Cache = Annotated[Path, typer.Option(metavar="FILE", help="keeps the verdicts of models")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="write all scores here")]
Picture = Annotated[Path | None, typer.Option(metavar="FILE", help="draw the figure: svg, png or pdf")]


@app.command()
def bench(
    arguments: Inputs,
    verifier: Trained = "",
    untrained: Untrained = "",
    untrained_prompt: UntrainedPrompt = "judge",
    limit: Limit = 0,
    cache: Cache = Path("verdicts.sqlite"),
    json_file: Json = None,
    picture: Picture = None,
) -> None:
    """Compare rules and verifiers with labelled pairs: errors by kind and source, with confidence intervals.

    ulorl verifier bench pairs/held_out.jsonl --verifier models/verifier --picture bench.svg

    ulorl verifier bench held_out.jsonl --verifier gpt-x kind=endpoint base_url=http://localhost:8000/v1
    """
    from ulorl.config.loading import overrides_among

    overrides = overrides_among(arguments)
    _check_files(json_file, picture, cache)
    from transformers.utils.logging import disable_progress_bar

    from ulorl.common.progress import ProgressBars
    from ulorl.verifier import bench_inputs, score_tables
    from ulorl.verifier.judge_scores import measure_judges
    from ulorl.verifier.judges import judges_by_name

    given = bench_inputs.read_bench_pairs([a for a in arguments if a not in overrides], limit)
    print("".join(f"{note}\n\n" for note in given.notes), end="")
    models = bench_inputs.make_verifiers(verifier, untrained, untrained_prompt, overrides, cache)
    disable_progress_bar()  # transformers' own
    try:
        with ProgressBars() as bars:
            scores = measure_judges(given.pairs, judges_by_name(models, bars, len(given.pairs)))
    except KeyboardInterrupt:
        print(f"\ninterrupted; {cache} keeps the verdicts, and the same command continues from there", file=sys.stderr)
        sys.exit(130)
    print(score_tables.markdown(scores))
    if json_file:
        text = json.dumps(score_tables.as_json(scores), indent=2, ensure_ascii=False)
        json_file.write_text(text + "\n", encoding="utf-8")
    if picture:
        from ulorl.verifier.score_figure import draw

        draw(scores, picture)


ServedModel = Annotated[
    str, typer.Argument(metavar="MODEL", help="a trained verifier's folder, or any causal LM: a folder or hub name")
]
ServingKeys = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[key=value]...",
        help="max_tokens (of a request that names no limit, 2048), context (0: the model's), chat, seed, device, and "
        "engine.KEY as in a recipe: engine.kind=vllm engine.slots=64",
    ),
]
Host = Annotated[str, typer.Option(help="the address; one that other machines reach needs --api-key-env")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="the port; 0: a free one, which is printed")]
ServedName = Annotated[str, typer.Option("--name", help="by which requests call the model")]
ApiKeyEnv = Annotated[
    str, typer.Option(metavar="NAME", help="the environment variable with the key that requests must carry")
]


@app.command()
def serve(
    model: ServedModel,
    overrides: ServingKeys = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    name: ServedName = "verifier",
    api_key_env: ApiKeyEnv = "",
) -> None:
    """Serve a model on this machine, with the API of OpenAI's chat completions. Needs the extra serve.

    The engine of UloRL decodes all requests of the moment in one batch, so that any framework can ask the verifier.
    Ctrl-C stops the server; requests in progress get 5 seconds to end.

    ulorl verifier serve models/verifier

    ulorl train recipes/gsm8k.toml recipes/rewards/generative.toml reward.verifier.prompt=models/verifier
    """
    if missing := [package for package in ("starlette", "uvicorn") if find_spec(package) is None]:
        message = f'verifier serve needs {" and ".join(missing)}: pip install "ulorl[serve]"'
        raise UserError(message, code=ErrorCode.EXTRA_MISSING)
    from ulorl.config.loading import load_class
    from ulorl.verifier.serving_config import ServingConfig, api_key

    settings = load_class(ServingConfig, [], overrides or [])
    key = api_key(host, api_key_env)
    from transformers.utils.logging import disable_progress_bar

    from ulorl.verifier.serving import serve as run_server

    disable_progress_bar()  # of loading the weights
    answered = run_server(model, name, settings, host=host, port=port, key=key)
    print(f"\nstopped; requests answered: {answered}", file=sys.stderr)


def _check_files(json_file: Path | None, picture: Path | None, cache: Path) -> None:
    for option, path in (("--json", json_file), ("--picture", picture), ("--cache", cache)):
        check_output_file(option, path)
    if picture and picture.suffix not in (".svg", ".png", ".pdf"):
        message = f"--picture {picture}: give a name that ends in .svg, .png or .pdf"
        raise UserError(message, code=ErrorCode.COMMAND_LINE, key="--picture", file=picture)
