"""The commands `ulorl reward ...`. Importing this module imports no torch."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ulorl.cli.output_options import check_output_file
from ulorl.config.reward_config import RewardConfig, RewardRecipe
from ulorl.config.unions import variants_of
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from ulorl.rewards.case_files import Case
    from ulorl.rewards.judged_cases import Agreement, JudgedCase

app = typer.Typer(help="Test a reward on recorded outputs, before you train with it.", no_args_is_help=True)
_SHOWN = 100  # characters of an answer or a reference in a line


@app.callback()
def reward() -> None:
    """Test a reward on recorded outputs, before you train with it."""


@app.command("test")
def check(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE...|KIND FILE... [reward.KEY=value]...",
            help="TOML recipes, or a kind of reward that needs no recipe: math, numeric, exact, choice, or rules (what "
            "reward.verifier.rules_first accepts); then files or glob patterns of records; then overrides",
        ),
    ],
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="write every verdict into this file")
    ] = None,
    disagreements: Annotated[
        bool, typer.Option("--disagreements", help="print only the records whose label differs from the verdict")
    ] = False,
) -> None:
    """Judge records as training would judge them, and print each verdict with the extracted answer and the reason.

    ulorl reward test math cases.jsonl

    ulorl reward test recipes/gsm8k.toml cases.jsonl reward.kind=numeric reward.tolerance=0.01 --json verdicts.json

    A line of cases.jsonl: {"output": "So it is \\\\boxed{0.5}.", "reference": "1/2", "label": true}. A record may have
    answer (an extracted answer) instead of output (a whole output), and also question, label (whether the answer is
    right), options and meta.

    Exit code: 0 when the reward agrees with every label, or no record has one; 1 when it does not; 2 for bad input.
    """
    settings, files = _settings_and_files(arguments)
    check_output_file("--json", json_file)
    from ulorl.rewards import judged_cases
    from ulorl.rewards.case_files import read_cases

    try:
        found = _judged(settings, read_cases(files))
    except KeyboardInterrupt:
        print("\ninterrupted; nothing is written", file=sys.stderr)
        sys.exit(130)
    summary = judged_cases.agreement(found)
    _show(found, summary, disagreements)
    if json_file:
        text = json.dumps(judged_cases.as_json(found, summary), indent=2, ensure_ascii=False)
        json_file.write_text(text + "\n", encoding="utf-8")
    if any(one.agrees is False for one in found):
        sys.exit(1)


def _settings_and_files(arguments: Sequence[str]) -> tuple[RewardConfig | None, list[str]]:
    """Return the configuration of the reward, None for rules, and the files of records. Raises UserError."""
    from ulorl.config.loading import overrides_among

    recipes = [a for a in arguments if a.endswith(".toml")]
    overrides = [a for a in overrides_among(arguments) if a not in recipes]
    others = [a for a in arguments if a not in (*recipes, *overrides)]
    kind = others.pop(0) if others and not recipes else ""
    settings = _settings(kind, recipes, overrides)
    if not others:
        raise UserError("no file of records is named; give JSONL, JSON or Parquet files", code=ErrorCode.COMMAND_LINE)
    return settings, others


def _settings(kind: str, recipes: Sequence[str], overrides: Sequence[str]) -> RewardConfig | None:
    """Return the configuration of the reward; None for rules. Raises UserError for arguments that name none."""
    from ulorl.config.loading import load_class
    from ulorl.rewards.judged_cases import RULES

    for override in overrides:
        if not override.startswith("reward."):
            raise UserError(
                f"{override}: this command takes keys of reward only, for example reward.tolerance=0.01",
                code=ErrorCode.COMMAND_LINE,
                key=override.partition("=")[0],
            )
    if kind == RULES and overrides:
        raise UserError(
            f"{overrides[0]}: {RULES} has no settings",
            code=ErrorCode.COMMAND_LINE,
            key=overrides[0].partition("=")[0],
        )
    if kind == RULES:
        return None
    kinds = variants_of(RewardConfig)
    if not recipes and kind not in kinds:
        raise UserError(
            f"{kind or 'the first argument'}: neither a recipe (.toml) nor a kind of reward; the kinds are "
            f"{', '.join(kinds)} and {RULES}",
            code=ErrorCode.COMMAND_LINE,
        )
    of_kind = [f'reward.kind="{kind}"'] if kind else []
    return load_class(RewardRecipe, recipes, [*of_kind, *overrides]).reward


def _judged(settings: RewardConfig | None, given: Sequence[Case]) -> list[JudgedCase]:
    """Judge the cases, with a progress bar if standard error is a terminal."""
    from ulorl.common.progress import ProgressBars
    from ulorl.rewards.judged_cases import judge_cases

    with ProgressBars() as bars:
        return list(judge_cases(settings, given, bars.add("judged", len(given)).advance))


def _show(found: Sequence[JudgedCase], summary: Agreement, only_disagreements: bool) -> None:
    """Print a line for each record, then again the lines of those that disagree with their label, and the counts.

    Only a terminal gets colours.
    """
    from rich.console import Console

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # an ASCII terminal or file must not stop it
    console = Console(highlight=False, emoji=False, markup=False, soft_wrap=True)
    wrong = [one for one in found if one.agrees is False]
    if not only_disagreements:
        for one in found:
            console.print(_line(one))
        console.print()
    if wrong:
        console.print(f"{len(wrong)} of {summary.labelled} labelled records disagree with their label:")
        for one in wrong:
            console.print(_line(one))
        console.print()
    accepted = sum(one.verdict is not None and one.verdict.reward == 1.0 for one in found)
    unscored = sum(one.verdict is None for one in found)
    console.print(
        f"{len(found)} records: {accepted} get 1, {len(found) - accepted - unscored} get 0, {unscored} unscored"
    )
    if summary.rate:
        console.print(_table(summary))
        console.print(
            f"agreement with {summary.labelled} labels: {summary.rate} (95% interval; records with the same question "
            "count as one)"
        )


def _line(one: JudgedCase) -> Text:
    """Return a line such as `1 cases.jsonl:3: 0.5 from boxed, reference 1/2: equal by math-verify`."""
    from rich.text import Text

    case, verdict = one.case, one.verdict
    shown, style = "unscored", "yellow"
    if verdict:
        shown, style = ("1", "green") if verdict.reward == 1.0 else ("0", "red")
    parts = [f"reference {_short(case.problem.answer)}"] if case.problem.answer else []
    if verdict and verdict.answer:
        parts.insert(0, f"{_short(verdict.answer)}{f' from {verdict.place}' if verdict.place else ''}")
    line = Text(shown, style=style)
    line.append(f" {case.place}: {', '.join(parts)}: {_printable(one.reason) or 'no reason is given'}", style="default")
    if one.agrees is False:
        line.append(f" (label {int(bool(case.label))})", style="bold red")
    return line


def _table(summary: Agreement) -> Table:
    from rich.table import Table

    table = Table("", "label 1", "label 0", box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="")
    table.add_row("reward 1", f"{summary.true_positives} true positives", f"{summary.false_positives} false positives")
    table.add_row("reward 0", f"{summary.false_negatives} false negatives", f"{summary.true_negatives} true negatives")
    if summary.unscored:
        table.caption = f"{summary.unscored} unscored, which agree with no label"
    return table


def _short(text: str) -> str:
    """Return a text in one line, cut in the middle when it is long."""
    text = _printable(text)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]} ... {text[-_SHOWN // 2 :]}"


def _printable(text: str) -> str:
    """Return a text with control characters escaped: a model's output must not control the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
