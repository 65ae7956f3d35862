"""Compares two evaluations of the same problems.

Problems differ in difficulty far more than models differ from each other, so each problem is compared with itself. The
interval is that of a paired t test over problems. It was preferred to a bootstrap because it depends on no draws and,
with the 30 problems of an AIME, covers the true difference more often: a bootstrap's percentiles are too narrow by
about sqrt((n - 1) / n) and take the normal for the t quantile (tests/evaluation/test_paired_difference.py counts both).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ulorl.common.intervals import ROUNDING, student
from ulorl.evaluation.estimators import mean_with_error


@dataclass(frozen=True)
class Difference:
    """The mean over problems of the difference of two models' shares of right answers, with its 95% interval."""

    value: float
    low: float
    high: float
    problems: int

    @property
    def resolved(self) -> bool:
        """Whether the interval excludes 0."""
        return not self.low <= 0 <= self.high


def paired_difference(shares: Sequence[float | None], baseline: Sequence[float | None]) -> Difference | None:
    """Return `shares` - `baseline`, over the problems where both have a share: mean ± t(n - 1) s / sqrt(n).

    Args:
        shares, baseline: the share of right answers to each problem, in the same order; None: nothing was scored.

    Returns:
        None with fewer than two problems, and where all differences are equal, which says nothing of their variance.

    Raises:
        ValueError: the evaluations have different numbers of problems.
    """
    if len(shares) != len(baseline):
        raise ValueError(f"{len(shares)} and {len(baseline)} problems cannot be paired")
    differences = [one - other for one, other in zip(shares, baseline, strict=True) if None not in (one, other)]  # type: ignore[operator]
    n = len(differences)
    if n < 2 or np.ptp(differences) < ROUNDING:
        return None
    mean, error = mean_with_error(differences)
    half = student(n - 1) * error
    return Difference(mean, mean - half, mean + half, n)
