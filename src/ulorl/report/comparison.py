"""Draws several runs in one figure. Runs whose settings differ in the seed only are one line, the mean of the seeds,
inside the range from the lowest to the highest seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray

from ulorl.common import markdown
from ulorl.common.key_paths import flatten
from ulorl.common.plot_style import STYLE
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.runs.saved_run import SavedRun, common_curve, read_run

PANELS = ("eval/accuracy", "entropy/mean", "reward/mean", "rollout/length_mean")
_NO_DIFFERENCE = ("seed", "steps", "run.", "log.")  # keys in which runs of one arm may differ


@dataclass(frozen=True)
class Arm:
    """The runs of an experiment with the same settings and different seeds."""

    label: str
    runs: tuple[SavedRun, ...]

    def curve(self, key: str) -> tuple[list[int], NDArray[np.float64]]:
        """Return the steps at which every seed has the metric `key`, and its values there, [seeds, steps]."""
        return common_curve(self.runs, key)


def arms(run_dirs: Sequence[Path]) -> list[Arm]:
    """Group runs by the settings in which they differ, in the order given. Raises UserError for what is not a run."""
    if not run_dirs:
        raise UserError("give the folders of at least one run", code=ErrorCode.COMMAND_LINE)
    records = [read_run(path) for path in run_dirs]
    settings = [
        {key: value for key, value in flatten(record.config).items() if not key.startswith(_NO_DIFFERENCE)}
        for record in records
    ]
    keys = sorted(set().union(*settings))
    differing = [k for k in keys if len({repr(s.get(k)) for s in settings}) > 1]
    grouped: dict[str, list[SavedRun]] = {}
    for record, setting in zip(records, settings, strict=True):
        grouped.setdefault(", ".join(f"{k}={setting.get(k)}" for k in differing) or "all runs", []).append(record)
    return [Arm(label, tuple(runs)) for label, runs in grouped.items()]


def write_comparison(run_dirs: Sequence[Path], out: Path, keys: Sequence[str] = PANELS) -> str:
    """Draw the curves of the metrics `keys` to `out` (svg, png or pdf). Returns a Markdown table with the first and
    last value of each arm: the mean over seeds, and the values of the seeds. Raises UserError for what is not a run and
    for another file type."""
    if out.suffix not in (".svg", ".png", ".pdf"):
        message = f"{out}: a figure's name ends in .svg, .png or .pdf"
        raise UserError(message, code=ErrorCode.COMMAND_LINE, key="--out", file=out)
    found = arms(run_dirs)
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
    return markdown.table(("runs", "metric", "first", "last", "last, by seed"), _rows(found, keys))


def _rows(found: Sequence[Arm], keys: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for arm in found:
        for key in keys:
            steps, values = arm.curve(key)
            if steps:
                first, last = values[:, 0].mean(), values[:, -1].mean()
                by_seed = ", ".join(f"{v:.3f}" for v in values[:, -1])
                yield arm.label, key, f"{first:.3f} (step {steps[0]})", f"{last:.3f} (step {steps[-1]})", by_seed
