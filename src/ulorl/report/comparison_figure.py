"""Draws several runs in one figure for documents, and their first and last values as a table. The runs of an arm are
one line, the mean of the seeds, inside the range from the lowest to the highest seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure as Canvas

from ulorl.common import markdown
from ulorl.common.plot_style import STYLE
from ulorl.report.arms import Arm, arms
from ulorl.runs.saved_run import read_run

PANELS = ("eval/accuracy", "entropy/mean", "reward/mean", "rollout/length_mean")
FIGURES = (".svg", ".png", ".pdf")


def compare(run_dirs: Sequence[Path], keys: Sequence[str] = PANELS) -> str:
    """Return a Markdown table with the first and last value of the metrics `keys` of each arm: the mean over seeds, and
    the values of the seeds. Raises UserError for what is not a run."""
    rows = _rows(arms([read_run(path) for path in run_dirs]), keys)
    return markdown.table(("runs", "metric", "first", "last", "last, by seed"), rows)


def draw_comparison(run_dirs: Sequence[Path], out: Path, keys: Sequence[str] = PANELS) -> None:
    """Draw the curves of the metrics `keys` to `out`, whose name ends in one of `FIGURES`. Raises UserError for what is
    not a run."""
    found = arms([read_run(path) for path in run_dirs])
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(10, 2.9 * -(-len(keys) // 2)), layout="constrained")
        for panel, key in enumerate(keys):
            axes = canvas.add_subplot(-(-len(keys) // 2), 2, panel + 1)
            for arm in found:
                steps, values = arm.curve(key)
                if steps:
                    (line,) = axes.plot(steps, values.mean(axis=0), label=f"{arm.label} ({len(values)})")
                    axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.15)
            axes.set_title(key, fontsize=9)
            axes.set_xlabel("step")
            axes.grid(alpha=0.25)
        canvas.axes[0].legend(frameon=False, fontsize=8)
        out.parent.mkdir(parents=True, exist_ok=True)
        canvas.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None, facecolor="white")


def _rows(found: Sequence[Arm], keys: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for arm in found:
        for key in keys:
            steps, values = arm.curve(key)
            if steps:
                first, last = values[:, 0].mean(), values[:, -1].mean()
                by_seed = ", ".join(f"{v:.3f}" for v in values[:, -1])
                yield arm.label, key, f"{first:.3f} (step {steps[0]})", f"{last:.3f} (step {steps[-1]})", by_seed
