"""The commands `ulorl data ...`. Importing this module imports no torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ulorl.cleaning.items import StepReport

app = typer.Typer(help="Prepare problems to train on.", no_args_is_help=True)


@app.callback()
def data() -> None:
    """Prepare problems to train on."""


@app.command()
def clean(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE... [key=value]...",
            help="files, glob patterns, hub datasets or names of [sources]; then overrides",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="the folder that gets the result")] = Path("clean"),
    config: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="a TOML file with sources, steps and models; repeatable")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an earlier result in DIR")] = False,
) -> None:
    """Clean and transform problems (section 3.4 of the paper). docs/cleaning.md describes the steps.

    ulorl data clean raw/*.jsonl 'contamination.against=["eval/*.jsonl"]' --out cleaned
    """
    from ulorl.cleaning.cleaning_config import CleaningConfig
    from ulorl.config.loading import load_class, overrides_among

    given = arguments or []
    overrides = overrides_among(given)
    settings = load_class(CleaningConfig, config or [], overrides)
    from ulorl.cleaning import pipeline
    from ulorl.common.progress import ProgressBars

    try:
        with ProgressBars() as bars:
            paths = [a for a in given if a not in overrides]
            result, files = pipeline.clean(paths, out, settings, overwrite=overwrite, bars=bars)
    except KeyboardInterrupt:
        print(f"\ninterrupted; the outputs of models are kept in {out}; the same command continues", file=sys.stderr)
        sys.exit(130)
    for step in result.steps:
        print(_line(step))
    print(f"\n{len(result.kept)} of {sum(result.sources.values())} problems kept: {files.problems}")
    print(f"{len(result.dropped)} dropped, with reasons: {files.dropped}\ndata card: {files.card}")


def _line(step: StepReport) -> str:
    reasons = ", ".join(f"{reason} {number}" for reason, number in sorted(step.dropped.items()))
    changes = f"{step.changed} changed" if step.changed else ""
    open_ = f"{step.undecided} undecided" if step.undecided else ""
    return f"{step.name:<17}{step.before:>8} -> {step.after:<8}" + "; ".join(filter(None, (reasons, changes, open_)))
