"""Draws the pictures of docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ulorl.common.plot_style import STYLE

COLORS = {
    "generate, static cache": "#4878a8",
    "generate, dynamic cache": "#8fb3d4",
    "vLLM": "#d98032",
    "TRL": "#5b9a68",
    "whole logits": "#8d6bb0",
}


@dataclass(frozen=True)
class Ratio:
    """Ours is `times` as fast as `peer`, one of `COLORS`, in the workload `what`."""

    what: str
    peer: str
    times: float


def draw_ratios(bars: Sequence[Ratio], path: Path) -> None:
    """Draw a group of bars for each workload with a bar for each peer, and a line at 1, where both are equally fast."""
    groups: dict[str, list[Ratio]] = {}
    for bar in bars:
        groups.setdefault(bar.what, []).append(bar)
    with matplotlib.rc_context(STYLE):
        canvas = Figure(figsize=(8, 0.8 + 0.21 * len(bars) + 0.12 * len(groups)), layout="constrained")
        axes: Axes = canvas.add_subplot()
        axes.axvline(1, color="#444444", linewidth=0.8, zorder=0)
        place, middles = 0.0, []
        for group in groups.values():
            middles.append(place + (len(group) - 1) / 2)
            for bar in group:
                axes.barh(place, bar.times, color=COLORS[bar.peer], height=0.9)
                axes.annotate(
                    f"{bar.times:.2f}", (bar.times, place), (4, 0), textcoords="offset points", va="center",
                    fontsize=8, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
                )  # fmt: skip
                place += 1
            place += 0.6
        axes.set_yticks(middles, list(groups))
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.margins(x=0.08, y=0.01)
        axes.set_xlabel("times as fast as the peer")
        peers = [peer for peer in COLORS if any(bar.peer == peer for bar in bars)]
        canvas.legend(
            [Patch(color=COLORS[peer]) for peer in peers], peers, frameon=False, ncols=3, loc="outside upper center"
        )
        _save(canvas, path)


def draw_memory(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw peak memory over tokens, with the memory that logits alone would take."""
    with matplotlib.rc_context(STYLE):
        canvas = Figure(figsize=(6, 3.6), layout="constrained")
        axes: Axes = canvas.add_subplot()
        tokens = [result["tokens"] for result in results]
        axes.plot(tokens, [r["peak_bytes"] / 1e9 for r in results], marker="o", label="peak memory of the process")
        alone = [r["logits_would_take_bytes"] / 1e9 for r in results]
        axes.plot(tokens, alone, "--", label="[tokens x vocabulary] alone")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("tokens of the sample")
        axes.set_ylabel("GB")
        axes.grid(visible=True, alpha=0.3)
        axes.legend(frameon=False)
        _save(canvas, path)


def _save(canvas: Figure, path: Path) -> None:
    canvas.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, facecolor="white")
