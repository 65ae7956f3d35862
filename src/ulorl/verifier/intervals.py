"""Confidence intervals of rates over pairs that come in problems. No torch."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

Z = 1.959963984540054  # of a two-sided 95% interval


@dataclass(frozen=True)
class Interval:
    """A share with its 95% confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%})"


def rate(hits: Sequence[bool], problems: Sequence[Hashable]) -> Interval | None:
    """The share of `hits`; `problems` says which pairs belong together. None for no pairs.

    Wilson's score interval at the effective number of pairs: pairs of one problem are alike, so they count for less,
    n p (1 - p) / (variance of the ratio estimator, problems as clusters), at most n (Korn & Graubard 1998). Where all
    are hits or none is, that variance is 0, and the problems count instead of the pairs.
    """
    if not hits:
        return None
    codes: dict[Hashable, int] = {}
    index = []
    for problem in problems:
        index.append(codes.setdefault(problem, len(codes)))
    n, clusters, share = len(hits), len(codes), sum(hits) / len(hits)
    residuals = np.bincount(index, np.asarray(hits, float) - share, clusters)
    variance = clusters / max(clusters - 1, 1) * float(residuals @ residuals) / n**2
    effective = float(clusters)
    if 0 < share < 1:
        effective = min(float(n), share * (1 - share) / variance) if variance > 1e-15 else float(n)
    return wilson(share, effective)


def wilson(share: float, n: float) -> Interval:
    """Wilson's score interval of a share of `n`."""
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return Interval(share, min(share, middle - half), max(share, middle + half))


def mean_of(first: Interval | None, second: Interval | None) -> Interval | None:
    """The mean of two rates (balanced accuracy is one) by MOVER: the squares of the distances from each rate to its own
    limit add up (Newcombe 1998; Zou & Donner 2008). It takes the rates for independent; a judge that says yes more
    readily to some problems makes them vary in opposite directions, and then the interval is too wide."""
    if first is None or second is None:
        return None
    value = (first.value + second.value) / 2
    low = value - math.hypot(first.value - first.low, second.value - second.low) / 2
    high = value + math.hypot(first.high - first.value, second.high - second.value) / 2
    return Interval(value, low, high)
