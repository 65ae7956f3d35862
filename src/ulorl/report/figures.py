"""The figures of report.html, a function for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import LogFormatter, MaxNLocator

from ulorl.report.drawing import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    Curve,
    Figure,
    add_legend,
    as_percent,
    curve_figure,
    description,
    draw_figure,
    plot_curve,
    plot_stack,
)
from ulorl.runs.saved_run import SavedRun
from ulorl.runs.summary import accuracies


def figures(record: SavedRun) -> list[Figure]:
    """Return every figure for which the run has numbers."""
    makers = (
        _reward,
        _accuracy,
        _entropy,
        _mpt,
        _segments,
        _histogram,
        _lengths,
        _length_bias,
        _samples,
        _groups,
        _age,
        _versions,
        _occupancy,
        _importance,
        _mismatch,
        _gradient,
        _speed,
        _time,
    )
    return [figure for make in makers if (figure := make(record))]


def _reward(record: SavedRun) -> Figure | None:
    steps, values = record.series("reward/mean")
    if not values:
        return None

    def draw(axes: Any) -> None:
        plot_curve(axes, Curve("", steps, values, BLUE))
        axes.set_ylim(0, max(1.0, *values))

    return draw_figure(
        "Reward",
        "Mean over the samples finished in the step; 1 is a right answer.",
        draw,
        description("Mean reward", steps, values),
    )


def _accuracy(record: SavedRun) -> Figure | None:
    found = accuracies(record)
    if not found:
        return None
    steps, values = [a.step for a in found], [a.value for a in found]
    lows = [a.interval.low if a.interval else a.value for a in found]
    highs = [a.interval.high if a.interval else a.value for a in found]
    bars = [[v - low for v, low in zip(values, lows, strict=True)], [h - v for v, h in zip(values, highs, strict=True)]]

    def draw(axes: Any) -> None:
        axes.errorbar(steps, values, yerr=bars, color=GREEN, marker="o", markersize=4, capsize=3, elinewidth=1.2)
        axes.yaxis.set_major_formatter(as_percent)
        margin = max(0.02, 0.15 * (max(highs) - min(lows)))
        axes.set_ylim(max(0, min(lows) - margin), min(1, max(highs) + margin))

    note = (
        "Problems never trained on. Bars are 95% intervals."
        if any(a.interval for a in found)
        else "Problems never trained on."
    )
    return draw_figure("Held-out accuracy", note, draw, description("Held-out accuracy", steps, values, ".1%"))


def _entropy(record: SavedRun) -> Figure | None:
    steps, values = record.series("entropy/mean")
    sigma, mask = record.setting("objective.mpt.sigma"), record.setting("objective.mpt.mask")
    target = float(sigma) if mask == "dynamic" and isinstance(sigma, int | float) else None
    if not values:
        return None

    def draw(axes: Any) -> None:
        plot_curve(axes, Curve("entropy", steps, values, PURPLE))
        if target is not None:
            label = f"target σ = {target:g}"
            axes.axhline(target, color=ORANGE, linestyle=(0, (4, 3)), linewidth=1.2, label=label)
            add_legend(axes)
        axes.set_ylim(0, 1.15 * max(*values, target or 0, 1e-9))

    note = "Nats a token, of the policy that trains."
    if target is not None and record.setting("objective.mpt.gate") == "batch":
        note += " Below the target, MPTs are masked."
    elif target is not None:
        note += " A sample whose mean is below the target has its MPTs masked (eq. 10)."
    return draw_figure("Entropy", note, draw, description("Mean token entropy", steps, values))


def _mpt(record: SavedRun) -> Figure | None:
    return _curves(
        record,
        "Well-mastered positive tokens",
        "Share of trained tokens that are MPTs (eq. 9), and that are masked.",
        (("MPTs", "mpt/fraction", BLUE), ("masked", "mpt/masked_fraction", ORANGE)),
        percent=True,
    )


def _importance(record: SavedRun) -> Figure | None:
    ratio = Curve("ratio, mean", *record.series("importance/ratio_mean"), BLUE)
    clip = Curve("clipped tokens", *record.series("importance/clip_fraction"), ORANGE)
    if not ratio.values and not clip.values:
        return None

    def draw(upper: Any, lower: Any) -> None:
        plot_curve(upper, ratio)
        upper.axhline(1, color=INK, linewidth=0.8, linestyle=(0, (2, 3)))
        reach = max([abs(v - 1) for v in ratio.values] + [0.002]) * 1.3
        upper.set_ylim(1 - reach, 1 + reach)
        upper.ticklabel_format(axis="y", useOffset=False)
        upper.yaxis.set_major_locator(MaxNLocator(3))
        plot_curve(lower, clip)
        lower.set_ylim(0, max([*clip.values, 0.001]) * 1.3)
        lower.yaxis.set_major_formatter(as_percent)
        lower.yaxis.set_major_locator(MaxNLocator(3))
        for axes in (upper, lower):
            add_legend(axes)

    alt = "; ".join(description(c.label.capitalize(), c.steps, c.values, ".4g") for c in (ratio, clip) if c.values)
    return draw_figure(
        "Importance ratio", "New over old probability, and the share of tokens clipped.", draw, alt, panels=2
    )


def _lengths(record: SavedRun) -> Figure | None:
    lengths = record.stats.lengths
    if not lengths:
        return None
    steps = sorted(lengths)
    low, high = (np.array([np.percentile(lengths[s], q) for s in steps]) for q in (10, 90))
    mean = [float(np.mean(lengths[s])) for s in steps]
    held_out = Curve("held-out, mean", *record.series("eval/length_mean"), GREEN)

    def draw(axes: Any) -> None:
        axes.fill_between(steps, low, high, color=BLUE, alpha=0.16, linewidth=0, label="10th to 90th percentile")
        plot_curve(axes, Curve("mean", steps, mean, BLUE))
        if held_out.values:
            axes.plot(held_out.steps, held_out.values, "o", color=GREEN, markersize=4, label=held_out.label)
        axes.set_ylim(0)
        add_legend(axes)

    return draw_figure(
        "Output length", "Tokens of the finished samples.", draw, description("Mean length", steps, mean, ",.0f")
    )


def _length_bias(record: SavedRun) -> Figure | None:
    steps, values = record.series("train/length_bias")
    if not values:
        return None

    def draw(axes: Any) -> None:
        plot_curve(axes, Curve("", steps, values, BLUE))
        axes.axhline(1, color=INK, linewidth=0.8, linestyle=(0, (2, 3)))
        axes.set_ylim(min(0.5, 0.9 * min(values)), max(1.2, 1.05 * max(values)))

    note = "Mean length of what trained over that of what was started, lately. Below 1: short samples train first."
    return draw_figure("Length bias", note, draw, description("Length bias", steps, values))


def _groups(record: SavedRun) -> Figure | None:
    if not record.series("rollout/groups_open")[1]:
        return None
    return _curves(
        record,
        "Groups a step",
        "Trained; open after the step; finished ones among these, which wait for a later step.",
        (
            ("trained", "train/groups", GREEN),
            ("open", "rollout/groups_open", BLUE),
            ("finished, waiting", "rollout/groups_waiting", ORANGE),
        ),
    )


def _age(record: SavedRun) -> Figure | None:
    mean = Curve("mean", *record.series("rollout/staleness_mean"), BLUE)
    shares = [record.series(f"age/{age}") for age in ("0", "1", "2", "3", "4_or_more")]
    if not shares[0][1]:
        return None
    labels = ("0", "1", "2", "3", "4 or more")

    def draw(upper: Any, lower: Any) -> None:
        plot_curve(upper, mean)
        upper.set_ylim(0, max(1.2 * max(mean.values), 0.1))
        upper.yaxis.set_major_locator(MaxNLocator(3))
        colors = [(BLUE, alpha) for alpha in (0.16, 0.34, 0.54, 0.76, 1.0)]
        plot_stack(lower, shares[0][0], [values for _, values in shares], labels, colors)
        lower.set_ylim(0, 1)
        lower.yaxis.set_major_formatter(as_percent)
        for axes in (upper, lower):
            add_legend(axes)

    last = ", ".join(f"{label}: {values[-1]:.1%}" for label, (_, values) in zip(labels, shares, strict=True))
    return draw_figure(
        "Age of the trained tokens",
        "Versions between the one that drew a token and the one that trains on it, and the share of each age.",
        draw,
        f"{description('Mean age', mean.steps, mean.values)}; shares by age at step {shares[0][0][-1]}, {last}",
        panels=2,
    )


def _versions(record: SavedRun) -> Figure | None:
    return _curves(
        record,
        "Versions a sample",
        "That drew the tokens of a trained sample.",
        (("mean", "train/versions_mean", BLUE), ("highest", "train/versions_max", ORANGE)),
        floor=1,
    )


def _occupancy(record: SavedRun) -> Figure | None:
    curves = [Curve("occupied slots", *record.series("engine/occupancy"), BLUE)]
    idle, seconds = (dict(zip(*record.series(f"time/{name}"), strict=True)) for name in ("engine_idle", "rollout"))
    steps = [step for step in idle if seconds.get(step)]
    if steps:
        curves.append(Curve("idle engines", steps, [idle[step] / seconds[step] for step in steps], ORANGE))
    curves = [curve for curve in curves if curve.values]
    note = "Mean share of an engine's slots that decode while it has samples"
    note += "; and of the time for which an engine has none." if steps else "."
    return curve_figure("Occupancy", note, curves, percent=True)


def _samples(record: SavedRun) -> Figure | None:
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


def _segments(record: SavedRun) -> Figure | None:
    return _curves(
        record,
        "Segments a sample",
        "Mean over the samples finished in the step.",
        (("", "rollout/segments_mean", BLUE),),
        floor=1,
    )


def _mismatch(record: SavedRun) -> Figure | None:
    trained = Curve("trained tokens", *record.series("mismatch/mean"), BLUE)
    probe = Curve("probe", *record.series("mismatch/probe_mean"), ORANGE)
    if not trained.values and not probe.values:
        return None

    def draw(axes: Any) -> None:
        for curve in (trained, probe):
            plot_curve(axes, curve)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())  # 1e-07, which is short enough for the margin
        axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))
        add_legend(axes)

    return draw_figure(
        "Engine against learner",
        "Mean difference of their log-probs of the same tokens under the same weights, in nats.",
        draw,
        "; ".join(description(f"Mismatch, {c.label}", c.steps, c.values, ".2g") for c in (trained, probe) if c.values),
    )


def _gradient(record: SavedRun) -> Figure | None:
    keys = (("", "train/grad_norm", PURPLE),)
    return _curves(record, "Gradient norm", "Of the update, before clipping.", keys)


def _histogram(record: SavedRun) -> Figure | None:
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
        axes.yaxis.set_major_formatter(as_percent)
        axes.grid(axis="x", visible=False)
        axes.margins(y=0.12)

    alt = "Share of samples by number of segments: " + ", ".join(
        f"{n}: {s:.1%}" for n, s in zip(numbers, shares, strict=True)
    )
    note = f"Of the {record.stats.count:,} stored samples; each segment was decoded in another step."
    return draw_figure("Segments a sample, whole run", note, draw, alt, x_label="segments")


def _speed(record: SavedRun) -> Figure | None:
    tokens = dict(zip(*record.series("rollout/tokens"), strict=True))
    seconds = dict(zip(*record.series("time/rollout"), strict=True))
    steps = [s for s in tokens if seconds.get(s)]
    speeds = [tokens[s] / seconds[s] for s in steps]
    if not steps:
        return None

    def draw(axes: Any) -> None:
        plot_curve(axes, Curve("", steps, speeds, BLUE))
        axes.set_ylim(0, 1.15 * max(*speeds, 1e-9))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")

    return draw_figure(
        "Tokens a second", "Decoded while rolling out.", draw, description("Tokens a second", steps, speeds, ",.0f")
    )


def _time(record: SavedRun) -> Figure | None:
    whole = dict(zip(*record.series("time/step"), strict=True))
    if not whole:
        return None
    parts = [dict(zip(*record.series(f"time/{name}"), strict=True)) for name in ("rollout", "update")]
    steps = list(whole)
    rollout, update = ([part.get(s, 0.0) for s in steps] for part in parts)
    other = [max(0.0, whole[s] - r - u) for s, r, u in zip(steps, rollout, update, strict=True)]

    def draw(axes: Any) -> None:
        colors = ((BLUE, 1), (ORANGE, 1), (INK, 1))
        plot_stack(axes, steps, (rollout, update, other), ("rollout", "update", "other"), colors)
        axes.set_ylim(0)
        add_legend(axes)

    shares = [sum(values) / max(sum(whole.values()), 1e-9) for values in (rollout, update, other)]
    alt = "Seconds a step: rollout {:.0%}, update {:.0%}, other {:.0%} of the time".format(*shares)
    return draw_figure("Time", "Seconds a step.", draw, alt)


def _curves(
    record: SavedRun,
    title: str,
    note: str,
    keys: Sequence[tuple[str, str, str]],
    *,
    percent: bool = False,
    floor: float = 0,
) -> Figure | None:
    """Return one figure with a curve for each (label, metric, colour)."""
    curves = [Curve(label, *record.series(key), color) for label, key, color in keys]
    return curve_figure(title, note, curves, percent=percent, floor=floor)
