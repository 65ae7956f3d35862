"""The curves of report.html: SVG that takes its colours from the page, so that one drawing serves light and dark.

Matplotlib draws with placeholder colours; `_themed` turns them into CSS variables of the template, drops what would
differ between two drawings of the same numbers, and leaves text as text in the page's font.
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

from ulorl.report.record import RunRecord
from ulorl.report.summary import accuracies

INK, GRID, BLUE, ORANGE, GREEN, PURPLE = ("#010101", "#020202", "#030303", "#040404", "#050505", "#060606")
_VARIABLES = {INK: "muted", GRID: "grid", BLUE: "blue", ORANGE: "orange", GREEN: "green", PURPLE: "purple"}
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
_FEW = 40  # up to so many points each gets a marker: a line alone hides single points and gaps


@dataclass(frozen=True)
class Figure:
    """`alt` says in words what the curve shows, for who cannot see it."""

    title: str
    note: str
    svg: str
    alt: str


@dataclass(frozen=True)
class Curve:
    label: str
    steps: Sequence[int]
    values: Sequence[float]
    color: str


def figures(record: RunRecord) -> list[Figure]:
    """Every curve the run has numbers for."""
    makers = (
        _reward,
        _accuracy,
        _entropy,
        _mpt,
        _segments,
        _histogram,
        _lengths,
        _samples,
        _importance,
        _mismatch,
        _gradient,
        _speed,
        _time,
    )
    return [figure for make in makers if (figure := make(record))]


def _reward(record: RunRecord) -> Figure | None:
    steps, values = record.series("reward/mean")
    if not values:
        return None

    def draw(axes: Any) -> None:
        _plot(axes, Curve("", steps, values, BLUE))
        axes.set_ylim(0, max(1.0, *values))

    return _figure(
        "Reward",
        "Mean over the samples finished in the step; 1 is a right answer.",
        draw,
        _told("Mean reward", steps, values),
    )


def _accuracy(record: RunRecord) -> Figure | None:
    found = accuracies(record)
    if not found:
        return None
    steps, values = [a.step for a in found], [a.value for a in found]
    halves = [a.half_width or 0.0 for a in found]

    def draw(axes: Any) -> None:
        axes.errorbar(steps, values, yerr=halves, color=GREEN, marker="o", markersize=4, capsize=3, elinewidth=1.2)
        axes.yaxis.set_major_formatter(_percent)
        low = min(v - h for v, h in zip(values, halves, strict=True))
        high = max(v + h for v, h in zip(values, halves, strict=True))
        margin = max(0.02, 0.15 * (high - low))
        axes.set_ylim(max(0, low - margin), min(1, high + margin))

    note = "Problems never trained on. Bars are 95% intervals." if any(halves) else "Problems never trained on."
    return _figure("Held-out accuracy", note, draw, _told("Held-out accuracy", steps, values, ".1%"))


def _entropy(record: RunRecord) -> Figure | None:
    steps, values = record.series("entropy/mean")
    sigma, mask = record.setting("objective.mpt.sigma"), record.setting("objective.mpt.mask")
    target = float(sigma) if mask == "dynamic" and isinstance(sigma, int | float) else None
    if not values:
        return None

    def draw(axes: Any) -> None:
        _plot(axes, Curve("entropy", steps, values, PURPLE))
        if target is not None:
            label = f"target σ = {target:g}"
            axes.axhline(target, color=ORANGE, linestyle=(0, (4, 3)), linewidth=1.2, label=label)
            _legend(axes)
        axes.set_ylim(0, 1.15 * max(*values, target or 0, 1e-9))

    note = "Nats a token, of the policy that trains."
    if target is not None and record.setting("objective.mpt.gate") == "batch":
        note += " Below the target, MPTs are masked."
    elif target is not None:
        note += " A sample whose mean is below the target has its MPTs masked (eq. 10)."
    return _figure("Entropy", note, draw, _told("Mean token entropy", steps, values))


def _mpt(record: RunRecord) -> Figure | None:
    return _curves(
        record,
        "Well-mastered positive tokens",
        "Share of trained tokens that are MPTs (eq. 9), and that are masked.",
        (("MPTs", "mpt/fraction", BLUE), ("masked", "mpt/masked_fraction", ORANGE)),
        percent=True,
    )


def _importance(record: RunRecord) -> Figure | None:
    ratio = Curve("ratio, mean", *record.series("importance/ratio_mean"), BLUE)
    clip = Curve("clipped tokens", *record.series("importance/clip_fraction"), ORANGE)
    if not ratio.values and not clip.values:
        return None

    def draw(upper: Any, lower: Any) -> None:
        _plot(upper, ratio)
        upper.axhline(1, color=INK, linewidth=0.8, linestyle=(0, (2, 3)))
        reach = max([abs(v - 1) for v in ratio.values] + [0.002]) * 1.3
        upper.set_ylim(1 - reach, 1 + reach)
        upper.ticklabel_format(axis="y", useOffset=False)
        upper.yaxis.set_major_locator(MaxNLocator(3))
        _plot(lower, clip)
        lower.set_ylim(0, max([*clip.values, 0.001]) * 1.3)
        lower.yaxis.set_major_formatter(_percent)
        lower.yaxis.set_major_locator(MaxNLocator(3))
        for axes in (upper, lower):
            _legend(axes)

    alt = "; ".join(_told(c.label.capitalize(), c.steps, c.values, ".4g") for c in (ratio, clip) if c.values)
    return _figure(
        "Importance ratio", "New over old probability, and the share of tokens clipped.", draw, alt, panels=2
    )


def _lengths(record: RunRecord) -> Figure | None:
    lengths = record.stats.lengths
    if not lengths:
        return None
    steps = sorted(lengths)
    low, high = (np.array([np.percentile(lengths[s], q) for s in steps]) for q in (10, 90))
    mean = [float(np.mean(lengths[s])) for s in steps]
    held_out = Curve("held-out, mean", *record.series("eval/length_mean"), GREEN)

    def draw(axes: Any) -> None:
        axes.fill_between(steps, low, high, color=BLUE, alpha=0.16, linewidth=0, label="10th to 90th percentile")
        _plot(axes, Curve("mean", steps, mean, BLUE))
        if held_out.values:
            axes.plot(held_out.steps, held_out.values, "o", color=GREEN, markersize=4, label=held_out.label)
        axes.set_ylim(0)
        _legend(axes)

    return _figure("Output length", "Tokens of the finished samples.", draw, _told("Mean length", steps, mean, ",.0f"))


def _samples(record: RunRecord) -> Figure | None:
    return _curves(
        record,
        "Samples a step",
        "Finished; carried over to the next step; cut at the global maximum length.",
        (
            ("finished", "rollout/finished", GREEN),
            ("carried over", "rollout/carried", BLUE),
            ("truncated", "rollout/truncated", ORANGE),
        ),
    )


def _segments(record: RunRecord) -> Figure | None:
    return _curves(
        record,
        "Segments a sample",
        "Mean over the samples finished in the step.",
        (("", "rollout/segments_mean", BLUE),),
        floor=1,
    )


def _mismatch(record: RunRecord) -> Figure | None:
    trained = Curve("trained tokens", *record.series("mismatch/mean"), BLUE)
    probe = Curve("probe", *record.series("mismatch/probe_mean"), ORANGE)
    if not trained.values and not probe.values:
        return None

    def draw(axes: Any) -> None:
        for curve in (trained, probe):
            _plot(axes, curve)
        axes.set_yscale("log")
        _legend(axes)

    return _figure(
        "Engine against learner",
        "Mean difference of their log-probs of the same tokens under the same weights, in nats.",
        draw,
        "; ".join(_told(f"Mismatch, {c.label}", c.steps, c.values, ".2g") for c in (trained, probe) if c.values),
    )


def _gradient(record: RunRecord) -> Figure | None:
    keys = (("", "train/grad_norm", PURPLE),)
    return _curves(record, "Gradient norm", "Of the update, before clipping.", keys)


def _histogram(record: RunRecord) -> Figure | None:
    counts = record.stats.segments
    if not counts:
        return None
    numbers = list(range(1, max(counts) + 1))
    shares = [counts[n] / record.stats.count for n in numbers]

    def draw(axes: Any) -> None:
        bars = axes.bar(numbers, shares, color=BLUE, width=0.7)
        if len(numbers) <= 10:
            axes.bar_label(bars, [f"{s:.1%}" for s in shares], padding=2, color=INK)
        axes.set_xlabel("segments")
        axes.yaxis.set_major_formatter(_percent)
        axes.grid(axis="x", visible=False)
        axes.margins(y=0.12)

    alt = "Share of samples by number of segments: " + ", ".join(
        f"{n}: {s:.1%}" for n, s in zip(numbers, shares, strict=True)
    )
    note = f"Of the {record.stats.count:,} stored samples; each segment was decoded in another step."
    return _figure("Segments a sample, whole run", note, draw, alt, x_label="segments")


def _speed(record: RunRecord) -> Figure | None:
    tokens = dict(zip(*record.series("rollout/tokens"), strict=True))
    seconds = dict(zip(*record.series("time/rollout"), strict=True))
    steps = [s for s in tokens if seconds.get(s)]
    speeds = [tokens[s] / seconds[s] for s in steps]
    if not steps:
        return None

    def draw(axes: Any) -> None:
        _plot(axes, Curve("", steps, speeds, BLUE))
        axes.set_ylim(0, 1.15 * max(*speeds, 1e-9))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")

    return _figure(
        "Tokens a second", "Decoded while rolling out.", draw, _told("Tokens a second", steps, speeds, ",.0f")
    )


def _time(record: RunRecord) -> Figure | None:
    whole = dict(zip(*record.series("time/step"), strict=True))
    if not whole:
        return None
    parts = [dict(zip(*record.series(f"time/{name}"), strict=True)) for name in ("rollout", "update")]
    steps = list(whole)
    rollout, update = ([part.get(s, 0.0) for s in steps] for part in parts)
    other = [max(0.0, whole[s] - r - u) for s, r, u in zip(steps, rollout, update, strict=True)]

    def draw(axes: Any) -> None:
        parts, colors = [("rollout", rollout), ("update", update), ("other", other)], (BLUE, ORANGE, INK)
        bottom = np.zeros(len(steps))
        for (label, values), color in zip(parts, colors, strict=True):
            if not any(values):
                continue
            top = bottom + values
            if len(steps) <= _FEW:
                axes.bar(steps, values, 0.8, bottom=bottom, color=color, linewidth=0, label=label)
            else:
                axes.fill_between(steps, bottom, top, color=color, linewidth=0, step="mid", label=label)
            bottom = top
        axes.set_ylim(0)
        axes.grid(axis="x", visible=False)
        _legend(axes)

    shares = [sum(values) / max(sum(whole.values()), 1e-9) for values in (rollout, update, other)]
    alt = "Seconds a step: rollout {:.0%}, update {:.0%}, other {:.0%} of the time".format(*shares)
    return _figure("Time", "Seconds a step.", draw, alt)


def _curves(
    record: RunRecord,
    title: str,
    note: str,
    keys: Sequence[tuple[str, str, str]],
    *,
    percent: bool = False,
    floor: float = 0,
) -> Figure | None:
    """One figure of plain curves, (label, metric, colour) each."""
    curves = [Curve(label, *record.series(key), color) for label, key, color in keys]
    curves = [curve for curve in curves if curve.values]
    if not curves:
        return None

    def draw(axes: Any) -> None:
        for curve in curves:
            _plot(axes, curve)
        top = max(max(curve.values) for curve in curves)
        axes.set_ylim(floor, floor + max(1.15 * (top - floor), 1e-3 if percent else 0.1))
        if percent:
            axes.yaxis.set_major_formatter(_percent)
        _legend(axes)

    spec = ".1%" if percent else ".4g"
    alt = "; ".join(_told(curve.label.capitalize() or title, curve.steps, curve.values, spec) for curve in curves)
    return _figure(title, note, draw, alt)


def _plot(axes: Any, curve: Curve) -> None:
    """The values; over a long run faint, with their running mean."""
    smooth = _smoothed(curve.values)
    if smooth is not None:
        axes.plot(curve.steps, curve.values, color=curve.color, alpha=0.35, linewidth=1)
    marker = "o" if len(curve.values) <= _FEW else ""
    axes.plot(
        curve.steps, smooth or curve.values, color=curve.color, label=curve.label or None, marker=marker, markersize=3
    )


def _percent(value: float, _: object) -> str:
    return f"{100 * value:.4g}%"


def _legend(axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles, labels, loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=len(handles),
            borderaxespad=0.1, handlelength=1.2, columnspacing=1.2,
        )  # fmt: skip


def _figure(
    title: str, note: str, draw: Callable[..., None], alt: str, *, panels: int = 1, x_label: str = "step"
) -> Figure:
    """`draw` gets the figure's axes, one or `panels` of them above each other."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}):  # ids are the same each time, and unique in the page
        canvas = Canvas(figsize=(4.7, 2.7))
        canvas.subplots_adjust(left=0.115, right=0.985, top=0.9, bottom=0.155, hspace=0.5)  # alike in all: axes line up
        axes = canvas.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
        draw(*axes)
        axes[-1].set_xlabel(x_label)
        axes[-1].xaxis.set_major_locator(MaxNLocator(6, integer=True))
        out = io.StringIO()
        canvas.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Figure(title, note, _themed(out.getvalue(), f"{title}. {alt}"), alt)


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


def _told(name: str, steps: Sequence[int], values: Sequence[float], spec: str = ".3f") -> str:
    """A curve in a sentence."""
    if len(values) == 1:
        return f"{name}: {values[0]:{spec}} at step {steps[0]}"
    return (
        f"{name}: {values[0]:{spec}} at step {steps[0]}, {values[-1]:{spec}} at step {steps[-1]}, "
        f"lowest {min(values):{spec}}, highest {max(values):{spec}}"
    )


def _smoothed(values: Sequence[float]) -> list[float] | None:
    """Centred running mean over about a twelfth of the run; None when there is too little to smooth."""
    half = len(values) // 24
    if half < 1:
        return None
    return [float(np.mean(values[max(0, i - half) : i + half + 1])) for i in range(len(values))]
