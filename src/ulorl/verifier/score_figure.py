"""Draws balanced accuracy by kind and judge, with confidence intervals."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ulorl.common.plot_style import STYLE
from ulorl.verifier.judge_scores import JudgeScores

COLORS = ("#8d8d8d", "#444444", "#8fb3d4", "#4878a8", "#d98032", "#5b9a68", "#8d6bb0")
STEP = 0.15  # between judges of one kind


def draw(result: JudgeScores, path: Path) -> None:
    """Draw a row for all pairs and for each kind to `path`; a row has a point with its interval for each judge. Kinds
    whose pairs are all equivalent, or all not, have no balanced accuracy: a hollow point shows their accuracy."""
    rows = {"all pairs": result.total, **result.by_kind}
    judges = list(result.total)
    with matplotlib.rc_context(STYLE):
        canvas = Figure(figsize=(7.5, 0.9 + len(rows) * (0.17 * len(judges) + 0.12)), layout="constrained")
        axes: Axes = canvas.add_subplot()
        axes.axvline(0.5, color="#bbbbbb", linewidth=0.8, zorder=0)
        for row, scores in enumerate(rows.values()):
            for place, (name, score) in enumerate(scores.items()):
                shown = score.balanced or score.accuracy
                if shown is None:
                    continue
                y = row + (place - (len(judges) - 1) / 2) * STEP * 5 / max(len(judges), 5)
                color = COLORS[judges.index(name) % len(COLORS)]
                axes.plot([shown.low, shown.high], [y, y], color=color, linewidth=1.6, solid_capstyle="round")
                filled = color if score.balanced else "white"
                axes.plot(shown.value, y, "o", color=color, markerfacecolor=filled, markersize=4)
        axes.set_yticks(
            range(len(rows)), [_label(name, next(iter(scores.values())).pairs) for name, scores in rows.items()]
        )
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.margins(y=0.02)
        axes.set_xlabel("balanced accuracy (hollow: accuracy, all pairs of one verdict), 95% intervals")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.grid(visible=True, axis="x", alpha=0.3)
        for i, name in enumerate(judges):
            axes.plot([], [], "o-", color=COLORS[i % len(COLORS)], label=name, markersize=4)
        canvas.legend(frameon=False, ncols=3, loc="outside upper center")
        canvas.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, facecolor="white")


def _label(name: str, pairs: int) -> str:
    return f"{name} ({pairs})"
