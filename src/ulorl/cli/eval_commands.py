"""`ulorl eval`. Importing this module imports no torch."""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ulorl.cli.output_options import check_output_file
from ulorl.cli.recipe_arguments import load_recipes
from ulorl.config import shipped_recipes
from ulorl.config.loading import load_saved, with_overrides
from ulorl.config.tree import Config
from ulorl.error_codes import ErrorCode
from ulorl.errors import ErrorCollector, UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ulorl.evaluation.avg_at_k import Evaluation
    from ulorl.evaluation.result_tables import SuiteResult
    from ulorl.training.preflight import Inputs
    from ulorl.training.suite_evaluation import SuiteEvaluation

_OUT = Path("evaluations")


def evaluate(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN | MODEL | RECIPE... [key=value]...",
            help="the folder of a run, or TOML recipes; with --suite, also model folders and hub names, several of "
            "them; then overrides",
        ),
    ],
    suite: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME | NAME=FILE | FILE",
            help="aime24, aime25, beyondaime, math500, gsm8k, countdown, or your own problems; repeatable",
        ),
    ] = None,
    max_tokens: Annotated[
        list[int] | None, typer.Option(min=1, help="output length; several are read off the same outputs; repeatable")
    ] = None,
    rope: Annotated[
        list[str] | None,
        typer.Option(metavar="FACTORxLENGTH", help="YaRN, for example 1.5x95232, or none; repeatable"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="with --suite: the folder of all outputs and tables", show_default=str(_OUT)),
    ] = None,
    entropy: Annotated[bool, typer.Option("--entropy/--no-entropy", help="measure the token entropy and MPTs")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace evaluations that --out holds")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="write the result into this file")
    ] = None,
) -> None:
    """Measure avg@k on held-out problems or benchmark suites.

    Without --suite the problems are those of the run or recipe. A suite is sampled as in the paper (32 runs a problem,
    temperature 0.85, top-p 0.95, top-k 20); eval.samples=4 and the like change that. The same command again continues
    an evaluation that was stopped.

    ulorl eval runs/quickstart eval.samples=8

    ulorl eval models/mine --suite aime25 --suite math500=math500.jsonl --max-tokens 32768 --max-tokens 65536

    ulorl eval models/base runs/mine --suite gsm8k eval.problems=200 eval.samples=4
    """
    check_output_file("--json", json_file)
    if suite:
        from ulorl.cli.suite_plan import plan_evaluations

        planned = plan_evaluations(arguments, suite, max_tokens or [], rope or [], out or _OUT, entropy=entropy)
        _evaluate_suites(planned, out or _OUT, json_file, overwrite=overwrite)
        return
    options = {"--max-tokens": max_tokens, "--rope": rope, "--overwrite": overwrite, "--no-entropy": not entropy}
    for option, given in {**options, "--out": out}.items():
        if given:
            raise UserError(f"{option} goes with --suite", code=ErrorCode.COMMAND_LINE, key=option)
    _evaluate_held_out(_run_or_config(arguments), json_file)


def _evaluate_suites(planned: Sequence[SuiteEvaluation], out: Path, json_file: Path | None, *, overwrite: bool) -> None:
    """Lock and check all evaluations, then make them, and write their tables."""
    from ulorl.evaluation.stored_evaluation import clear, locked

    with ExitStack() as locks:
        for evaluation in planned:
            locks.enter_context(locked(evaluation.folder))
        errors, inputs = ErrorCollector(), []
        for evaluation in planned:
            with errors:
                inputs.append(evaluation.check())
        errors.raise_errors()
        if overwrite:
            for evaluation in planned:
                clear(evaluation.folder)
        _write(planned, _results(planned, inputs, out), out, json_file)


def _results(planned: Sequence[SuiteEvaluation], inputs: Sequence[Inputs], out: Path) -> list[SuiteResult]:
    """Make the evaluations. After a signal the process ends; the same command continues then."""
    from ulorl.cancellation import Cancelled
    from ulorl.common.progress import ProgressBars
    from ulorl.training.interrupts import catching_signals

    results: list[SuiteResult] = []
    with catching_signals() as interrupts:
        try:
            with ProgressBars() as bars:
                for evaluation, checked in zip(planned, inputs, strict=True):
                    results += evaluation.run(checked, bars, interrupts.cancel)
        except Cancelled:
            print(f"\nstopped; {out} holds what is finished. The same command continues", file=sys.stderr)
            sys.exit(128 + interrupts.received)
    return results


def _write(
    planned: Sequence[SuiteEvaluation], results: Sequence[SuiteResult], out: Path, json_file: Path | None
) -> None:
    """Print the tables of these evaluations, and write those of all evaluations in the folder."""
    from ulorl.evaluation.result_tables import all_tables, as_json
    from ulorl.evaluation.stored_results import write_tables

    print(all_tables(results))
    write_tables(out, [evaluation.folder for evaluation in planned])
    if json_file:
        json_file.write_text(json.dumps(as_json(results), indent=2) + "\n", encoding="utf-8")


def _evaluate_held_out(config: Config, json_file: Path | None) -> None:
    from ulorl.training.run import evaluate_config

    result = evaluate_config(config)
    interval, summary = result.interval, result.summary
    measured = "no answer could be scored"
    if interval:
        measured = f"{interval.value:.2%} (95%: {interval.low:.2%} to {interval.high:.2%})"
    print(f"avg@{result.samples} on {len(result.by_problem)} problems: {measured}")
    print(f"mean output {result.mean_length:.0f} tokens, {result.truncated:.1%} truncated")
    if result.samples in summary.pass_at and result.samples > 1:
        majority = "" if summary.majority is None else f", maj@{result.samples} {summary.majority:.2%}"
        print(f"pass@{result.samples} {summary.pass_at[result.samples]:.2%}{majority}")
    if result.unscored:
        print(f"{result.unscored} of {len(result.scored)} answers could not be scored and are left out")
    if json_file:
        text = json.dumps(_as_json(config.model.path, result), indent=2)
        json_file.write_text(text + "\n", encoding="utf-8")


def _as_json(model_path: str, result: Evaluation) -> dict[str, Any]:
    interval, summary = result.interval, result.summary
    return {
        "model": model_path,
        "accuracy": interval and interval.value,
        "interval": interval and [interval.low, interval.high],
        "stderr": result.stderr if len(result.shares) > 1 else None,
        "problems": len(result.by_problem),
        "samples": result.samples,
        "pass_at": summary.pass_at,
        "majority": summary.majority,
        "mean_length": result.mean_length,
        "length_p50": summary.lengths.p50,
        "length_p90": summary.lengths.p90,
        "length_p99": summary.lengths.p99,
        "truncated": result.truncated,
        "no_answer": result.no_answer,
        "repetitive": summary.repetitive,
        "unscored": result.unscored,
        "by_problem": result.by_problem,
    }


def _run_or_config(arguments: list[str]) -> Config:
    """Return the configuration of recipes, or of a run's folder together with its trained model."""
    run_dir = Path(arguments[0])
    if not os.path.exists(run_dir / "config.json"):  # Path.exists raises for names that are too long
        try:
            return load_recipes(arguments)
        except UserError as error:
            if error.code is not ErrorCode.RECIPE_NOT_FOUND or error.file != str(run_dir):
                raise
            text = f"{run_dir}: no such run or recipe (a model goes with --suite); {shipped_recipes.hint(run_dir)}"
            raise UserError(text, code=error.code, file=run_dir) from None
    saved = load_saved(run_dir / "config.json")
    trained = saved.model_copy(update={"model": saved.model.model_copy(update={"path": str(run_dir / "model")})})
    return with_overrides(
        trained,
        arguments[1:],
        allowed=("eval", "model", "engine", "seed"),
        purpose="the evaluation of a run",
    )
