"""What the report shows of each step: its metrics, values computed from them, and quantiles of the output lengths.

The steps of a long run are thinned: `shown_rows` keeps the same ones each time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ulorl.types import Metrics

OTHER_SECONDS, IDLE_SHARE = "computed/time_other", "computed/idle_share"
LENGTHS = {  # metric: how a reader calls it, and the percentile of the output lengths
    "length/p10": ("10th percentile", 10),
    "length/p50": ("median", 50),
    "length/p90": ("90th percentile", 90),
    "length/p99": ("99th percentile", 99),
    "length/max": ("longest", 100),
}
_DIGITS = 6  # that numbers are rounded to
_EXTREMES = (  # the lowest and highest values of these stay in a thinned curve
    "reward/mean", "entropy/mean", "train/grad_norm", "importance/clip_fraction", "mismatch/mean", "time/step",
)  # fmt: skip


def row(metrics: Metrics, lengths: Sequence[int] = ()) -> Metrics:
    """Return a step's metrics, rounded to 6 digits, with the values that the charts need besides. lengths: output
    tokens of the samples stored in the step."""
    found = {name: _rounded(value) for name, value in metrics.items()}
    whole, rollout = metrics.get("time/step"), metrics.get("time/rollout")
    if whole is not None:
        parts = sum(metrics.get(f"time/{name}") or 0.0 for name in ("rollout", "reward", "update", "sync"))
        found[OTHER_SECONDS] = _rounded(max(0.0, whole - parts))
    idle = metrics.get("time/engine_idle")
    if idle is not None and rollout:
        found[IDLE_SHARE] = _rounded(idle / rollout)
    if found.get("rollout/tokens_per_second") is None and metrics.get("rollout/tokens") is not None and rollout:
        found["rollout/tokens_per_second"] = _rounded((metrics["rollout/tokens"] or 0) / rollout)  # of older runs
    if lengths:
        values = np.percentile(lengths, [at for _, at in LENGTHS.values()]).tolist()
        found |= {name: _rounded(value) for name, value in zip(LENGTHS, values, strict=True)}
    return found


def columns(rows: Iterable[Metrics]) -> dict[str, list[float | int | None]]:
    """Return the values of each metric over the rows; a metric without any value is left out."""
    rows = list(rows)
    names = dict.fromkeys(name for one in rows for name in one)
    table = {name: [one.get(name) for one in rows] for name in names}
    return {name: values for name, values in table.items() if any(value is not None for value in values)}


def shown_rows(metrics: Sequence[Mapping[str, Any]], number: int, steps: Collection[int] = ()) -> list[int]:
    """Return the indices of the steps to show, about `number` of them and in rising order; all if there are no more.
    Besides these, `steps` are shown: those whose samples were read, so that the page has the lengths of their outputs.

    Half of them are evenly spaced, first and last included. The others are where a metric of `_EXTREMES` is lowest or
    highest within equal parts of the run, so that a spike stays. Evaluations stay too, as long as they are few.
    """
    if len(metrics) <= number:
        return list(range(len(metrics)))
    kept = {int(at) for at in np.linspace(0, len(metrics) - 1, max(2, number // 2)).round()}
    evaluated = [i for i, one in enumerate(metrics) if one.get("eval/accuracy") is not None]
    kept |= set(evaluated if len(evaluated) <= number // 4 else ())
    kept |= {i for i, one in enumerate(metrics) if one["step"] in steps}
    parts = max(1, number // (4 * len(_EXTREMES)))
    for part in np.array_split(np.arange(len(metrics)), parts):
        for name in _EXTREMES:
            known = [int(i) for i in part if metrics[i].get(name) is not None]
            if known:
                kept |= {min(known, key=lambda i: metrics[i][name]), max(known, key=lambda i: metrics[i][name])}
    return sorted(kept)


def _rounded(value: float | int | None) -> float | int | None:
    """Return a number as it is shown; None where a computation left the range of floats."""
    if not isinstance(value, float):
        return value
    rounded = float(f"{value:.{_DIGITS}g}")
    return rounded if math.isfinite(rounded) else None
