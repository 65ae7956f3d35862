"""The figures of `ulorl reproduce screen` as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from ulorl.common.markdown import table
from ulorl.reproduce.token_classes import CLASSES

_UNIT = """\
Change of the mean held-out entropy in 1e-3 nats by one step of the length of an Adam step at the recipe's learning rate
({}), to first order, with 95% intervals over prompts. MPTs, other tokens of right samples and tokens of wrong samples
add up to all; masking all MPTs trains on all but MPTs."""
_HEAD = (
    "tau", "MPTs, of tokens", "MPTs, of entropy", "step", "MPTs", "other right", "wrong", "all but MPTs", "all",
)  # fmt: skip


def page(figures: Mapping[str, Any]) -> str:
    """Return what `run` found as Markdown: a table, and a verdict for each threshold."""
    about = (
        f"**{figures['model']}**: {figures['samples']} samples of {figures['prompts']} prompts, "
        f"{figures['accuracy']:.1%} right, {figures['tokens']:,} tokens with a mean entropy of "
        f"{figures['entropy']:.3f} nats; {figures['trained_prompts']} prompts have right and wrong answers and train. "
        f"{figures['cpu_seconds']:.0f} s of CPU time, {figures['sampling_cpu_seconds']:.0f} s of it for sampling."
    )
    rows = []
    for one in figures["taus"]:
        share = one["mpt_entropy_share"]
        for step, of in one["attribution"].items():
            cells = (_cell(of[name]) for name in CLASSES)
            rows.append(
                (f"{one['tau']:g}", f"{one['mpt_share']:.1%}", "-" if share is None else f"{share:.1%}", step, *cells)
            )
    verdicts = "\n".join(f"- {one['verdict_text']}" for one in figures["taus"])
    return "\n\n".join([about, _UNIT.format(figures["learning_rate"]), table(_HEAD, rows, numbers_from=4), verdicts])


def _cell(interval: Mapping[str, float]) -> str:
    return f"{interval['value']:+.3g} ({interval['low']:+.3g} to {interval['high']:+.3g})"


def as_csv(figures: Mapping[str, Any]) -> str:
    """Return the attribution as CSV: a line for each threshold, step and class."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("model", "tau", "step", "class", "value", "low", "high", "verdict"))
    for one in figures["taus"]:
        for step, of in one["attribution"].items():
            for name, found in of.items():
                line = (found["value"], found["low"], found["high"], one["verdict"])
                writer.writerow((figures["model"], one["tau"], step, name, *line))
    return text.getvalue()
