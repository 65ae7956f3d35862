"""The picture of the last steps: which sample decoded when, under which version, and how many decoded at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulorl.report.drawing import GRID, INK, VERSIONS, Figure, draw_figure
from ulorl.runs.saved_run import SavedRun
from ulorl.runs.timeline import MILLISECONDS, StepTimeline, read_timeline

STEPS = 8  # that are shown at most
ROWS = 48  # samples that are shown at most
_GROUPS = 12  # from so many groups on, fewer siblings are shown rather than fewer groups
_POINTS = 600  # of the curve of samples that decode at once


@dataclass(frozen=True, eq=False)
class _Bars:
    """All segments of the steps shown, on one axis, on which the rollouts follow one another without updates."""

    steps: Sequence[StepTimeline]
    offsets: NDArray[np.float64]  # where each step begins, and the end, [steps + 1]
    sample: NDArray[np.int64]
    start: NDArray[np.float64]
    end: NDArray[np.float64]
    version: NDArray[np.int64]
    status: NDArray[np.str_]


def timeline_figure(run: SavedRun) -> Figure | None:
    """Return the picture of the last `STEPS` steps of a run, None when they are not stored. Raises UserError when
    timeline.jsonl is damaged."""
    steps = [one for one in read_timeline(run.dir, STEPS) if len(one.sample)]
    if not steps:
        return None
    steps = [one for one in steps if one.unit == steps[-1].unit]  # a run may resume with another number of engines
    group, slots = int(run.setting("rollout.group") or 1), int(run.setting("engine.slots") or 0)
    slots *= int(run.setting("backend.engines") or 1) if steps[-1].unit == MILLISECONDS else 1
    bars = _bars(steps)
    shown, samples = shown_samples(bars.sample, group), len(np.unique(bars.sample))
    parts = min(_POINTS, sum(one.length for one in steps))
    times, decoding = samples_at_once(bars.start, bars.end, float(bars.offsets[-1]), parts)
    mean, peak = float(np.average(decoding, weights=np.diff(times))), int(decoding.max())

    def draw(rows: Any, below: Any) -> None:
        _draw_rows(rows, bars, shown, group)
        _draw_count(below, bars, times, decoding, slots)

    count = f"all {samples}" if samples == len(shown) else f"{len(shown)} of {samples:,}"
    which = f"steps {steps[0].step} to {steps[-1].step}" if len(steps) > 1 else f"step {steps[0].step}"
    note = (
        f"{count[0].upper()}{count[1:]} samples of {which}, a line each; those of one problem are side by side. A bar "
        "is a segment, in the colour of the version that decoded it. A dot is the end of an output, a cross its cut at "
        "the maximum length. Between two bars a sample waits. Below: how many of all samples decode."
    )
    at_once = f"{mean:,.0f} decode at once on average, {peak:,} at most" + (f", of {slots:,} slots" if slots else "")
    unit = "seconds" if steps[-1].unit == MILLISECONDS else "decode steps"
    alt = f"{count} samples of {which}, by version; {at_once}"
    return draw_figure("Samples over time", note, draw, alt, panels=2, x_label=f"{unit} of rollout", wide=True)


def shown_samples(samples: NDArray[np.int64], group: int) -> list[int]:
    """Return the ids of the samples to show, at most `ROWS`: of evenly spaced groups, the first ones of each."""
    ids = np.unique(samples)
    groups = np.unique(ids // group)
    members = max(1, min(group, ROWS // min(len(groups), _GROUPS)))
    if len(groups) > ROWS // members:
        groups = groups[np.linspace(0, len(groups) - 1, ROWS // members).round().astype(int)]
    return [int(id) for id in ids[np.isin(ids // group, groups) & (ids % group < members)]]


def samples_at_once(
    starts: NDArray[np.float64], ends: NDArray[np.float64], length: float, parts: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how many of the spans cover each of `parts` equal parts of [0, length], on average: the edges of the
    parts, [parts + 1], and the numbers, [parts]."""
    edges = np.linspace(0, length, parts + 1)
    # the time that spans have covered before x is the sum of max(0, x - start) - max(0, x - end)
    covered = _sum_above(np.sort(starts), edges) - _sum_above(np.sort(ends), edges)
    return edges, np.diff(covered) / np.diff(edges)


def _sum_above(ascending: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    below = np.searchsorted(ascending, edges)
    return np.asarray(below * edges - np.append(0, np.cumsum(ascending))[below])


def _bars(steps: Sequence[StepTimeline]) -> _Bars:
    scale = 1e-3 if steps[-1].unit == MILLISECONDS else 1.0
    offsets = np.append(0, np.cumsum([scale * one.length for one in steps]))
    return _Bars(
        steps=steps,
        offsets=offsets,
        sample=np.concatenate([one.sample for one in steps]),
        start=np.concatenate([scale * one.start + at for one, at in zip(steps, offsets, strict=False)]),
        end=np.concatenate([scale * one.end + at for one, at in zip(steps, offsets, strict=False)]),
        version=np.concatenate([np.full(len(one.sample), one.version) for one in steps]),
        status=np.array(list("".join(one.status for one in steps))),
    )


def _draw_rows(axes: Any, bars: _Bars, shown: Sequence[int], group: int) -> None:
    groups = sorted({id // group for id in shown})
    row = {id: at + 0.8 * groups.index(id // group) for at, id in enumerate(shown)}  # a gap between groups
    chosen = np.isin(bars.sample, shown)
    y = np.array([row[int(id)] for id in bars.sample[chosen]])
    start, end, version, status = (a[chosen] for a in (bars.start, bars.end, bars.version, bars.status))
    for id in shown:
        mine = bars.sample[chosen] == id
        axes.hlines(row[id], start[mine].min(), end[mine].max(), color=INK, alpha=0.5, linewidth=0.6, zorder=0.5)
    for one in np.unique(version):
        mine, color = version == one, VERSIONS[one % len(VERSIONS)]
        axes.barh(y[mine], end[mine] - start[mine], 0.72, left=start[mine], color=color, linewidth=0)
    for letter, marker in (("c", "o"), ("t", "x")):
        mine = status == letter
        axes.plot(end[mine], y[mine], marker, color=INK, markersize=2.6, markeredgewidth=1, clip_on=False)
    _mark_steps(axes, bars, labels=True)
    axes.set_ylim(max(row.values()) + 0.9, -0.9)
    axes.set_yticks(
        [np.mean([row[id] for id in shown if id // group == one]) for one in groups], [str(one) for one in groups]
    )
    axes.set_ylabel("group")
    axes.grid(visible=False)


def _draw_count(axes: Any, bars: _Bars, times: NDArray[np.float64], decoding: NDArray[np.float64], slots: int) -> None:
    middles = (times[:-1] + times[1:]) / 2
    for at, one in enumerate(bars.steps):
        inside = (middles >= bars.offsets[at]) & (middles < bars.offsets[at + 1])
        color = VERSIONS[(one.version or 0) % len(VERSIONS)]
        axes.fill_between(middles[inside], decoding[inside], step="mid", color=color, alpha=0.75, linewidth=0)
    peak = float(decoding.max())
    if slots and slots <= 2 * peak:  # else the line would flatten the curve; the text names it
        axes.axhline(slots, color=INK, linewidth=0.9, linestyle=(0, (3, 3)))
        axes.annotate("slots", (1, slots), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
        peak = max(peak, slots)
    _mark_steps(axes, bars, labels=False)
    axes.set_ylim(0, 1.22 * peak)
    axes.set_ylabel("decoding")
    axes.grid(axis="x", visible=False)


def _mark_steps(axes: Any, bars: _Bars, *, labels: bool) -> None:
    """Draw a line where each step begins; name it and its version above the axes when there is space."""
    for at, one in enumerate(bars.steps):
        axes.axvline(bars.offsets[at], color=GRID, linewidth=0.9, zorder=0)
        share = (bars.offsets[at + 1] - bars.offsets[at]) / bars.offsets[-1]
        if labels and share > 0.035:
            middle = (bars.offsets[at] + bars.offsets[at + 1]) / 2
            text = f"step {one.step} · v{one.version}" if share > 0.075 else f"v{one.version}"
            axes.annotate(
                text, (middle, 1.015), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=8,
                color=VERSIONS[(one.version or 0) % len(VERSIONS)], fontweight="bold",
            )  # fmt: skip
    axes.axvline(bars.offsets[-1], color=GRID, linewidth=0.9, zorder=0)
    axes.set_xlim(0, bars.offsets[-1])
