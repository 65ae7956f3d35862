"""The last steps of a run as data for the report: which sample decoded when, under which version and on which engine,
and how many decoded at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulorl.runs.saved_run import SavedRun
from ulorl.runs.timeline import MILLISECONDS, StepTimeline, read_timeline

STEPS = 12  # that are shown at most
ROWS = 64  # samples that are shown at most
_GROUPS = 16  # from so many groups on, fewer siblings are shown rather than fewer groups
_POINTS = 600  # of the curve of samples that decode at once
_ENGINES = 16  # that are shown at most
_PARTS = 160  # of time, for each of them
_LEVELS = 8  # of how full an engine is


def timeline_data(run: SavedRun, cut: int = 1) -> dict[str, Any] | None:
    """Return the last `STEPS` steps of a run as plain values, None when they are not stored.

    The rollouts follow one another on one axis, without the updates between them. `bars` has a list for each segment:
    the place of its sample among `samples`, start, end, version, letter of the status, tokens, step, engine. `engines`
    are those that are shown of `engine_count`, by number; [] for one engine. `load` says how full they are, as
    `engine_load` does. Where a run was resumed with more engines, they are empty in the steps before that. cut: divides
    the numbers of samples and of points of the curve and of `load`. Raises UserError when timeline.jsonl is damaged.
    """
    steps = [one for one in read_timeline(run.dir, STEPS) if len(one.sample)]
    if not steps:
        return None
    steps = [one for one in steps if one.unit == steps[-1].unit]  # a run may resume with another number of engines
    in_seconds = steps[-1].unit == MILLISECONDS
    scale = 1e-3 if in_seconds else 1.0
    offsets = np.append(0, np.cumsum([scale * one.length for one in steps]))
    sample = np.concatenate([one.sample for one in steps])
    group, slots = int(run.setting("rollout.group") or 1), int(run.setting("engine.slots") or 0)
    shown = shown_samples(sample, group, ROWS // cut)
    starts, ends = (
        np.concatenate([scale * getattr(one, name) + at for one, at in zip(steps, offsets, strict=False)])
        for name in ("start", "end")
    )
    engine = np.concatenate([one.engine for one in steps])
    number = max(int(run.setting("backend.engines") or 1), int(engine.max()) + 1) if in_seconds else 1
    engines = shown_engines(number)
    times, decoding = samples_at_once(
        starts, ends, float(offsets[-1]), min(_POINTS // cut, max(1, sum(one.length for one in steps)))
    )
    return {
        "unit": "seconds" if in_seconds else "decode steps",
        "steps": [
            {"step": one.step, "version": one.version, "begins": _short(at)}
            for one, at in zip(steps, offsets, strict=False)
        ],
        "length": _short(offsets[-1]),
        "samples": shown,
        "groups": [id // group for id in shown],
        "total": len(np.unique(sample)),
        "bars": _bars(steps, shown, starts, ends),
        "slots": slots * number,
        "engine_slots": slots,
        "engines": engines,
        "engine_count": number,
        "load": engine_load(engines, engine, starts, ends, float(offsets[-1]), slots, _PARTS // cut),
        "decoding": [[_short(at), _short(n)] for at, n in zip(times, decoding, strict=False)],
    }


def shown_samples(samples: NDArray[np.int64], group: int, most: int = ROWS) -> list[int]:
    """Return the ids of the samples to show, at most `most`: of evenly spaced groups, the first ones of each."""
    ids = np.unique(samples)
    groups = np.unique(ids // group)
    members = max(1, min(group, most // min(len(groups), _GROUPS)))
    if len(groups) > most // members:
        groups = groups[np.linspace(0, len(groups) - 1, most // members).round().astype(int)]
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


def shown_engines(number: int) -> list[int]:
    """Return the numbers of the engines to show: none of a single one, and evenly spaced ones of many."""
    if number == 1:
        return []
    return [int(at) for at in np.linspace(0, number - 1, min(number, _ENGINES)).round()]


def engine_load(
    engines: Sequence[int],
    engine: NDArray[np.int64],
    starts: NDArray[np.float64],
    ends: NDArray[np.float64],
    length: float,
    slots: int,
    parts: int = _PARTS,
) -> list[list[float | int]]:
    """Return how many samples decode on each of `engines`, on average over spans of time in which that hardly changes.

    A list for each span: the place of the engine among `engines`, start, end, samples. engine, starts, ends: of every
    segment. slots: of an engine; 0: the most samples that decode on one at once stand for them. parts: equal ones of
    [0, length], of which spans are made.
    """
    counts = []
    for one in engines:
        times, decoding = samples_at_once(starts[engine == one], ends[engine == one], length, parts)
        counts.append(decoding)
    full = slots or max((decoding.max() for decoding in counts), default=0.0) or 1.0
    spans: list[list[float | int]] = []
    for place, decoding in enumerate(counts):
        changes = np.flatnonzero(np.diff(np.round(_LEVELS * decoding / full))) + 1
        for first, last in pairwise([0, *changes.tolist(), parts]):
            mean = decoding[first:last].mean()
            spans.append([place, _short(times[first]), _short(times[last]), _short(mean)])
    return spans


def _sum_above(ascending: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    below = np.searchsorted(ascending, edges)
    return np.asarray(below * edges - np.append(0, np.cumsum(ascending))[below])


def _bars(
    steps: Sequence[StepTimeline], shown: Sequence[int], starts: NDArray[np.float64], ends: NDArray[np.float64]
) -> list[list[Any]]:
    places = {id: place for place, id in enumerate(shown)}
    bars, at = [], 0
    for one in steps:
        for i, id in enumerate(one.sample.tolist()):
            if id in places:
                span = _short(starts[at + i]), _short(ends[at + i])
                facts = one.version, one.status[i], int(one.tokens[i]), one.step, int(one.engine[i])
                bars.append([places[id], *span, *facts])
        at += len(one.sample)
    return bars


def _short(value: float) -> float | int:
    rounded = round(float(value), 3)
    return int(rounded) if rounded.is_integer() else rounded
