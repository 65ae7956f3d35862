"""The last steps of a run as data for the report: which sample decoded when, under which version, and how many decoded
at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulorl.runs.saved_run import SavedRun
from ulorl.runs.timeline import MILLISECONDS, StepTimeline, read_timeline

STEPS = 12  # that are shown at most
ROWS = 64  # samples that are shown at most
_GROUPS = 16  # from so many groups on, fewer siblings are shown rather than fewer groups
_POINTS = 600  # of the curve of samples that decode at once


def timeline_data(run: SavedRun, cut: int = 1) -> dict[str, Any] | None:
    """Return the last `STEPS` steps of a run as plain values, None when they are not stored.

    The rollouts follow one another on one axis, without the updates between them. `bars` has a list for each segment:
    the place of its sample among `samples`, start, end, version, letter of the status, tokens, step. cut: divides
    the numbers of samples and of points of the curve. Raises UserError when timeline.jsonl is damaged.
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
        "slots": slots * (int(run.setting("backend.engines") or 1) if in_seconds else 1),
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
                bars.append([places[id], *span, one.version, one.status[i], int(one.tokens[i]), one.step])
        at += len(one.sample)
    return bars


def _short(value: float) -> float | int:
    rounded = round(float(value), 3)
    return int(rounded) if rounded.is_integer() else rounded
