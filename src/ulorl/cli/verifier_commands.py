"""`ulorl verifier ...`. Importing this module pulls in no torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ulorl.errors import UserError

if TYPE_CHECKING:
    from ulorl.common.progress import Advance
    from ulorl.rewards.generative_verifier import Verifier
    from ulorl.verifier.measure import Judge
    from ulorl.verifier.pairs import Pair

    Show = Callable[[str], Advance]

app = typer.Typer(help="The generative verifier: its data, training and figures (section 3.3).", no_args_is_help=True)
VERDICT_TOKENS = 8  # of a trained verifier's output: a word and the end
UNTRAINED_TOKENS = 64  # of the same model's before training: about as many as fit into minutes on a CPU
Pairs = Annotated[list[str], typer.Argument(metavar="PAIRS...", help="JSONL, JSON or Parquet files, glob patterns")]


def _finite(value: float) -> float:
    """nan is in no range, and click lets it through all of them."""
    if not isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


@app.command("data")
def make(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="SOURCE...", help="files, glob patterns, hub datasets or names of [sources]"),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="the folder to write")] = Path("pairs"),
    config: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="TOML with [sources.NAME], as of ulorl data clean")
    ] = None,
    per_problem: Annotated[int, typer.Option(min=2, help="pairs of a problem, at most")] = 4,
    held_out: Annotated[
        float,
        typer.Option(min=0, max=1, callback=_finite, help="share of the problems that are held out; 0: none, 1: all"),
    ] = 0.1,
    seed: Annotated[int, typer.Option(min=0, help="same seed and sources: same pairs")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the files that DIR holds already")] = False,
) -> None:
    """Make labelled pairs from problems with reference answers: equivalent ones and look-alikes, split by problem.

    ulorl verifier data raw/*.jsonl --out pairs
    """
    if find_spec("inflect") is None:
        raise UserError('verifier data needs inflect: pip install "ulorl[verifier]"')
    from ulorl.cleaning.cleaning_config import CleaningConfig
    from ulorl.common.progress import ProgressBars
    from ulorl.config.loading import load_class
    from ulorl.verifier.make_pairs import write_pair_files

    tables = load_class(CleaningConfig, config or []).sources
    with ProgressBars() as bars:
        done = write_pair_files(
            arguments or [],
            out,
            tables=tables,
            per_problem=per_problem,
            held_out=held_out,
            seed=seed,
            overwrite=overwrite,
            bars=bars,
        )
    counts = done.counts
    print(f"{counts['used']} of {counts['problems']} problems gave pairs; {counts['unreadable']} could not be read")
    for side, path in (("train", done.train), ("held_out", done.held_out)):
        print(
            f"{path}: {counts[side]} pairs"
            if counts[side]
            else f"{path}: not written, --held-out {held_out:g} leaves it empty"
        )
    print(done.card)


@app.command()
def train(
    pairs: Pairs,
    model: Annotated[str, typer.Option(metavar="FOLDER", help="the causal LM to train: a folder or hub name")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="the verifier's folder")],
    prompt: Annotated[str, typer.Option(help="short, judge, or a text file as of reward.verifier.prompt")] = "short",
    question_chars: Annotated[int, typer.Option(min=0, help="of longer questions only the end is shown; 0: all")] = 120,
    chat: Annotated[
        Literal["plain", "own"], typer.Option(help="plain: the prompt and nothing else; own: the model's chat template")
    ] = "plain",
    max_tokens: Annotated[int, typer.Option(min=1, help="pairs that take more are left out, and counted")] = 256,
    epochs: Annotated[float, typer.Option(min=0.01, callback=_finite, help="passes over the pairs")] = 1.0,
    max_pairs: Annotated[int, typer.Option(min=0, help="train on so many, drawn with the seed; 0: all")] = 0,
    minutes: Annotated[
        float, typer.Option(min=0, callback=_finite, help="end after so many, whatever is left; 0: no limit")
    ] = 0.0,
    save_minutes: Annotated[
        float, typer.Option(min=0, callback=_finite, help="save the model as it is so often; 0: at the end")
    ] = 10.0,
    batch: Annotated[int, typer.Option(min=1, help="pairs a step")] = 32,
    lr: Annotated[float, typer.Option(min=0, callback=_finite, help="AdamW's, after the warm-up; falls to 0")] = 1e-4,
    layers: Annotated[int, typer.Option(min=0, help="train the uppermost layers only; 0: all weights")] = 0,
    lora_rank: Annotated[int, typer.Option(min=0, help="train adapters of this rank, merged in the end; 0: none")] = 0,
    bf16: Annotated[bool, typer.Option("--bf16", help="matrix products in bfloat16: GPUs, AVX512_BF16, AMX")] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="same seed, pairs and machine: same weights")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the verifier that FOLDER holds")] = False,
) -> None:
    """Fine-tune a causal LM on labelled pairs, the verdict as its next token. Needs the extra verifier.

    ulorl verifier train pairs/train.jsonl --model models/smollm2-135m-instruct --out models/verifier
    """
    from ulorl.verifier.pairs import read_pairs

    given = read_pairs(pairs)  # before anything slow is imported
    from ulorl.verifier.fine_tune import train as fit
    from ulorl.verifier.verifier_config import VerifierTrainingConfig

    settings = VerifierTrainingConfig(
        prompt=prompt,
        question_chars=question_chars,
        chat=chat,
        max_tokens=max_tokens,
        epochs=epochs,
        max_pairs=max_pairs,
        minutes=minutes,
        save_minutes=save_minutes,
        batch=batch,
        lr=lr,
        layers=layers,
        lora_rank=lora_rank,
        bf16=bf16,
        seed=seed,
    )
    done = fit(given, model, out, settings, overwrite=overwrite)
    what = done.progress
    left_out = f"; {done.too_long} were longer than {max_tokens} tokens and left out" if done.too_long else ""
    print(
        f"{out}: {what.steps} steps, {what.pairs} pairs, {what.tokens} tokens in {what.minutes:.1f} minutes; lately "
        f"loss {what.loss:.3f}, {what.right:.1%} right{left_out}"
    )
    if done.interrupted:
        print(f"\ninterrupted; the model as it was is in {out}", file=sys.stderr)
        sys.exit(130)


@app.command("bench")
def measure(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="PAIRS... [key=value]...",
            help="files of pairs, or of graded outputs (docs/verifier.md); then keys of reward.verifier",
        ),
    ],
    verifier: Annotated[
        str, typer.Option(metavar="MODEL", help="a trained verifier's folder, or a model of kind=endpoint")
    ] = "",
    untrained: Annotated[str, typer.Option(metavar="MODEL", help="a model to stand beside it, as it came")] = "",
    untrained_prompt: Annotated[str, typer.Option(help="how that one is asked: judge, short or a file")] = "judge",
    limit: Annotated[int, typer.Option(min=0, help="so many pairs, drawn at random, always the same; 0: all")] = 0,
    cache: Annotated[Path, typer.Option(metavar="FILE", help="verdicts of models, kept")] = Path("verdicts.sqlite"),
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="write every figure here")] = None,
    picture: Annotated[Path | None, typer.Option(metavar="FILE", help="draw the figure: svg, png or pdf")] = None,
) -> None:
    """Hold rules and verifiers against labelled pairs: errors by kind and source, with confidence intervals.

    ulorl verifier bench pairs/held_out.jsonl --verifier models/verifier --picture bench.svg

    ulorl verifier bench held_out.jsonl --verifier gpt-x kind=endpoint base_url=http://localhost:8000/v1
    """
    from ulorl.config.loading import overrides_among

    overrides = overrides_among(arguments)
    _check_files(json_file, picture, cache)
    pairs = _drawn(_pairs([a for a in arguments if a not in overrides]), limit)
    models = _verifiers(verifier, untrained, untrained_prompt, overrides, cache)
    from transformers.utils.logging import disable_progress_bar

    from ulorl.common.progress import ProgressBars
    from ulorl.verifier import tables
    from ulorl.verifier.measure import bench

    disable_progress_bar()  # transformers' own
    try:
        with ProgressBars() as bars:
            result = bench(pairs, _judges(models, lambda name: bars.add(name, len(pairs)).advance))
    except KeyboardInterrupt:
        print(f"\ninterrupted; verdicts so far are in {cache}, the same command goes on from there", file=sys.stderr)
        sys.exit(130)
    print(tables.markdown(result))
    if json_file:
        json_file.write_text(json.dumps(tables.as_json(result), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if picture:
        from ulorl.verifier.figure import draw

        draw(result, picture)


def _pairs(paths: Sequence[str]) -> list[Pair]:
    """Of files of pairs, and of graded outputs that are known by their fields."""
    from ulorl.data.record_files import expand_pattern, read_records
    from ulorl.verifier.graded_outputs import columns_of, read_graded
    from ulorl.verifier.pairs import read_pairs

    pairs: list[Pair] = []
    files: list[str] = []
    for path in paths:
        with suppress(UserError):  # `read_pairs` says what is wrong with it
            files += map(str, expand_pattern(path))
            continue
        files.append(path)
    for path in files:
        columns = None
        with suppress(UserError):
            records = read_records(Path(path))
            columns = next((columns_of(list(r.fields)) for r in records if not isinstance(r, UserError)), None)
        if columns is None:
            pairs += read_pairs([path])
            continue
        graded = read_graded(path, columns)
        pairs += graded.pairs
        print(f"{path}: {len(graded.pairs)} graded answers; {graded.without_answer} outputs without one left out\n")
    if not pairs:
        raise UserError("no file of pairs is named")
    return pairs


def _verifiers(
    trained: str, untrained: str, untrained_prompt: str, overrides: Sequence[str], cache: Path
) -> dict[str, Verifier]:
    """By the names they have in the table. Raises UserError before any model is loaded."""
    if overrides and not trained:
        raise UserError(f"{overrides[0]}: belongs to --verifier, which is missing")
    from ulorl.config.loading import load_class
    from ulorl.config.reward_config import EngineVerifierConfig, VerifierConfig
    from ulorl.rewards.generative_verifier import Verifier
    from ulorl.rewards.verdict_prompt import FOLDER_FILE

    models = {}
    if untrained:
        settings = EngineVerifierConfig(name=untrained, prompt=untrained_prompt, max_tokens=UNTRAINED_TOKENS)
        models["untrained model"] = Verifier(settings, retries=0, cache=cache, key="--untrained")
    if trained:
        said = {override.partition("=")[0] for override in overrides}
        if "kind" not in said and "base_url" not in said:
            overrides = ["kind=engine", *overrides]
        if "max_tokens" not in said and (Path(trained).expanduser() / FOLDER_FILE).is_file():
            overrides = [f"max_tokens={VERDICT_TOKENS}", *overrides]
        overrides = [*overrides, f"name={json.dumps(trained)}"]
        own: VerifierConfig = load_class(VerifierConfig, [], overrides)
        models["verifier"] = Verifier(own, cache=cache, key="--verifier")
    return models


def _judges(models: dict[str, Verifier], show: Show) -> dict[str, Judge]:
    """By name, in the order of the table."""
    from ulorl.verifier import judges
    from ulorl.verifier.measure import of_rules, remembered, rules_first

    rules = remembered(judges.all_rules(show("rules")))
    asked = {"math-verify": judges.math_verify(show("math-verify")), "rules": of_rules(rules)}
    for name, model in models.items():
        asked[name] = remembered(judges.model(model, show(name)))
        if name == "verifier":
            asked["rules first"] = rules_first(rules, asked[name])
            asked["rules first, refusing"] = rules_first(rules, asked[name], refuse=True)
    return asked


def _drawn(pairs: list[Pair], limit: int) -> list[Pair]:
    from ulorl.rng import Stream, generator

    if not limit or limit >= len(pairs):
        return pairs
    chosen = sorted(generator(Stream.MEASURED_PAIRS).sample(range(len(pairs)), limit))
    return [pairs[i] for i in chosen]


def _check_files(json_file: Path | None, picture: Path | None, cache: Path) -> None:
    for option, path in (("--json", json_file), ("--picture", picture), ("--cache", cache)):
        if path and not path.absolute().parent.is_dir():
            raise UserError(f"{option} {path}: there is no folder {path.parent}")
    if picture and picture.suffix not in (".svg", ".png", ".pdf"):
        raise UserError(f"--picture {picture}: give a name that ends in .svg, .png or .pdf")
