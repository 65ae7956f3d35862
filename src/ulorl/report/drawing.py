"""Draws the curves of report.html as SVG that takes its colours from the page, so that it fits a light and a dark
theme.

Matplotlib draws with placeholder colours; `_themed` replaces them by CSS variables of the template, removes what would
differ between two drawings of the same numbers, and keeps text as text in the page's font.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

INK, GRID, BLUE, ORANGE, GREEN, PURPLE = ("#010101", "#020202", "#030303", "#040404", "#050505", "#060606")
VERSIONS = ("#070707", "#080808", "#090909", "#0a0a0a", "#0b0b0b", "#0c0c0c")  # version v has colour v mod 6
_VARIABLES = {INK: "muted", GRID: "grid", BLUE: "blue", ORANGE: "orange", GREEN: "green", PURPLE: "purple"} | {
    color: f"bar{hue}" for hue, color in enumerate(VERSIONS)
}
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.xmargin": 0.02,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
}
_NARROW = {"left": 0.115, "right": 0.985, "top": 0.9, "bottom": 0.155, "hspace": 0.5}  # alike in all: axes line up
_WIDE = {"left": 0.06, "right": 0.985, "top": 0.955, "bottom": 0.085, "hspace": 0.08}
FEW_POINTS = 40  # up to so many points each gets a marker: a line alone hides single points and gaps


@dataclass(frozen=True)
class Figure:
    """A figure of the page. `alt` describes it in words, for readers who cannot see it."""

    title: str
    note: str
    svg: str
    alt: str
    wide: bool = False


@dataclass(frozen=True)
class Curve:
    """The values of one metric at some steps."""

    label: str
    steps: Sequence[int]
    values: Sequence[float]
    color: str


def plot_curve(axes: Any, curve: Curve) -> None:
    """Draw the values of a curve; those of a long run are faint, below their running mean."""
    smooth = smoothed(curve.values)
    if smooth is not None:
        axes.plot(curve.steps, curve.values, color=curve.color, alpha=0.35, linewidth=1)
    marker = "o" if len(curve.values) <= FEW_POINTS else ""
    axes.plot(
        curve.steps, smooth or curve.values, color=curve.color, label=curve.label or None, marker=marker, markersize=3
    )


def plot_stack(
    axes: Any,
    steps: Sequence[int],
    parts: Sequence[Sequence[float]],
    labels: Sequence[str],
    colors: Sequence[tuple[str, float]],
) -> None:
    """Draw the parts of a whole on one another; those that are 0 everywhere are left out. colors: with their alpha."""
    bottom = np.zeros(len(steps))
    for values, label, (color, alpha) in zip(parts, labels, colors, strict=True):
        if not any(values):
            continue
        top = bottom + values
        look = {"color": color, "alpha": alpha, "linewidth": 0, "label": label}
        if len(steps) <= FEW_POINTS:
            axes.bar(steps, values, 0.8, bottom=bottom, **look)
        else:
            axes.fill_between(steps, bottom, top, step="mid", **look)
        bottom = top
    axes.grid(axis="x", visible=False)


def as_percent(value: float, _: object) -> str:
    """Return an axis label in percent."""
    return f"{100 * value:.4g}%"


def add_legend(axes: Any) -> None:
    """Add a legend above the axes when a curve has a label."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles, labels, loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=len(handles),
            borderaxespad=0.1, handlelength=1.2, columnspacing=1.2,
        )  # fmt: skip


def draw_figure(
    title: str,
    note: str,
    draw: Callable[..., None],
    alt: str,
    *,
    panels: int = 1,
    x_label: str = "step",
    wide: bool = False,
) -> Figure:
    """Return a figure. draw: is called with its axes, one or `panels` of them one above the other. wide: the figure is
    as wide as the page, and its first panel is the largest."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}):  # ids are the same each time, and unique in the page
        canvas = Canvas(figsize=(9.7, 5.6) if wide else (4.7, 2.7))
        canvas.subplots_adjust(**(_WIDE if wide else _NARROW))
        heights = [3.6, *[1] * (panels - 1)] if wide else None
        axes = canvas.subplots(panels, 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        draw(*axes)
        axes[-1].set_xlabel(x_label)
        axes[-1].xaxis.set_major_locator(MaxNLocator(10 if wide else 6, integer=True))
        out = io.StringIO()
        canvas.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Figure(title, note, _themed(out.getvalue(), f"{title}. {alt}"), alt, wide)


def curve_figure(
    title: str, note: str, curves: Sequence[Curve], *, percent: bool = False, floor: float = 0
) -> Figure | None:
    """Return one figure with all curves that have values, None without one. percent: the values are shares."""
    curves = [curve for curve in curves if curve.values]
    if not curves:
        return None

    def draw(axes: Any) -> None:
        for curve in curves:
            plot_curve(axes, curve)
        top = max(max(curve.values) for curve in curves)
        axes.set_ylim(floor, floor + max(1.15 * (top - floor), 1e-3 if percent else 0.1))
        if percent:
            axes.yaxis.set_major_formatter(as_percent)
        add_legend(axes)

    spec = ".1%" if percent else ".4g"
    alt = "; ".join(description(curve.label.capitalize() or title, curve.steps, curve.values, spec) for curve in curves)
    return draw_figure(title, note, draw, alt)


def _themed(svg: str, label: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<g) id="[^"]*"', r"\1", svg)  # figure_1, axes_1: the same in every figure of the page
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg)
    svg = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 var(--font)", svg)
    for color, name in _VARIABLES.items():
        svg = svg.replace(color, f"var(--{name})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def description(name: str, steps: Sequence[int], values: Sequence[float], spec: str = ".3f") -> str:
    """Return a curve described in words."""
    if len(values) == 1:
        return f"{name}: {values[0]:{spec}} at step {steps[0]}"
    return (
        f"{name}: {values[0]:{spec}} at step {steps[0]}, {values[-1]:{spec}} at step {steps[-1]}, "
        f"lowest {min(values):{spec}}, highest {max(values):{spec}}"
    )


def smoothed(values: Sequence[float]) -> list[float] | None:
    """Return the centred running mean over about a twelfth of the run, None when there is too little to smooth."""
    half = len(values) // 24
    if half < 1:
        return None
    return [float(np.mean(values[max(0, i - half) : i + half + 1])) for i in range(len(values))]
