"""95% confidence intervals of shares and means. Answers to one problem are correlated, so problems are the unit.

The interval of a share is Wilson's score interval (1927) at the effective number of answers, as Korn & Graubard (1998)
compute that of Clopper and Pearson: p (1 - p) / variance, with the variance taken over problems, times (z / t)² because
that variance is itself an estimate. t has the degrees of freedom of Satterthwaite (1946), which are few where a few
problems make up most of the variance. The effective number is at most the number of answers, and at least (Σ m)² / Σ m²
for problems with m answers each (Kish 1965), its value when all answers to a problem are equal.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Z = 1.959963984540054  # of a two-sided 95% interval
ROUNDING = 1e-12  # equal differences of shares are so far apart at most: 0.3 - 0.2 is not 0.1


@dataclass(frozen=True)
class Interval:
    """A value with its 95% confidence interval: low <= value <= high. As text: a share in percent."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%})"


def rate(hits: Sequence[bool], problems: Sequence[Hashable]) -> Interval | None:
    """Return the share of true values among `hits`, None where there are none. The variance is that of the ratio
    estimator.

    problems: the problem of each hit; None or "" for a hit that shares its problem with no other.
    """
    if not hits:
        return None
    codes: dict[Hashable, int] = {}
    index = [
        codes.setdefault((i,) if problem in (None, "") else problem, len(codes)) for i, problem in enumerate(problems)
    ]
    n, share = len(hits), sum(hits) / len(hits)
    residuals = np.bincount(index, np.asarray(hits, float) - share, len(codes))
    sizes = np.bincount(index)
    return _of_problems(share, residuals / n, least=n**2 / float(sizes @ sizes), most=n)


def mean_share(shares: Sequence[float], answers: int) -> Interval | None:
    """Return the mean over problems of the share of right answers, None without problems.

    shares: the share of each problem, in [0, 1]. answers: the number of answers to all problems together.
    """
    if not shares:
        return None
    share, n = float(np.mean(shares)), len(shares)
    return _of_problems(share, (np.asarray(shares) - share) / n, least=n, most=answers)


def _of_problems(share: float, parts: NDArray[np.float64], *, least: float, most: float) -> Interval:
    """Return the interval. parts: what each of K problems adds to the estimate's error, [K]. least, most: the limits of
    the effective number of answers."""
    count, squares = len(parts), parts**2
    total, effective = float(squares.sum()), most
    if count == 1 or not 0 < share < 1:
        effective = least  # there is no variance to see
    elif total > 1e-15:
        kurtosis = count * float(squares @ squares) / total**2
        freedom = min(count - 1, 2 * count / (kurtosis - (count - 3) / (count - 1)))
        effective = share * (1 - share) * (count - 1) / (count * total) * (Z / student(freedom)) ** 2
    return wilson(share, min(most, max(least, effective)))


def mean_interval(values: Sequence[float] | NDArray[np.float64]) -> Interval:
    """Return the mean of independent values with its 95% interval: mean ± t(n - 1) s / sqrt(n).

    The interval is infinite for a single value, and for equal ones, which say nothing of their variance.
    """
    array = np.asarray(values, dtype=np.float64)
    mean, half = float(array.mean()), student(max(1, len(array) - 1)) * math.sqrt(_variance_of_mean(array))
    return Interval(mean, mean - half, mean + half)


def crossed_mean(values_RC: NDArray[np.float64]) -> Interval:
    """Return the mean of a table with its 95% interval, where rows and columns are both samples of many: each seed (a
    row) answers each problem (a column), and other seeds and other problems would give other values.

    The squares of the standard errors of the row means and of the column means add up, with the degrees of freedom of
    Satterthwaite (1946). Mean / that error is the root of min F' of Clark (1973, "The language-as-fixed-effect
    fallacy", J. Verbal Learning and Verbal Behavior 12): in the crossed model with random rows and columns (Cornfield &
    Tukey 1956) its square is (MS_rows + MS_columns) / (R C), whose expectation is the variance of the mean, σ_r² / R +
    σ_c² / C + σ² / (R C), and the last term once more. The estimate that subtracts MS_residual has no such excess, but
    with three rows it is often near 0 or below, and its intervals then cover too little (docs/reproduction.md).

    The interval is infinite for a single row or column, and where the means of all rows, or of all columns, are equal.
    """
    of_rows, of_columns = values_RC.mean(axis=1), values_RC.mean(axis=0)
    mean, rows, columns = float(values_RC.mean()), _variance_of_mean(of_rows), _variance_of_mean(of_columns)
    if math.isinf(rows + columns):
        return Interval(mean, -math.inf, math.inf)
    freedom = (rows + columns) ** 2 / (rows**2 / (len(of_rows) - 1) + columns**2 / (len(of_columns) - 1))
    half = student(freedom) * math.sqrt(rows + columns)
    return Interval(mean, mean - half, mean + half)


def _variance_of_mean(values: NDArray[np.float64]) -> float:
    """Return s² / n; infinite for a single value, and for equal ones, which say nothing of their variance."""
    return float(values.var(ddof=1)) / len(values) if len(values) > 1 and np.ptp(values) >= ROUNDING else math.inf


def student(freedom: float) -> float:
    """Return the 97.5% quantile of Student's t: Abramowitz & Stegun 26.7.5, at most 0.8% too low from 2 degrees of
    freedom on, and exact for 1."""
    if freedom <= 1:
        return math.tan(math.pi * 0.475)
    z, v = Z, freedom
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )


def wilson(share: float, n: float) -> Interval:
    """Return Wilson's score interval of a share of `n`."""
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return Interval(share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)))


def mean_of(first: Interval | None, second: Interval | None) -> Interval | None:
    """Return the mean of two rates, such as balanced accuracy, by MOVER: the squares of the distances from each rate to
    its own limit add up (Newcombe 1998; Zou & Donner 2008). None where one of them is.

    The rates are taken as independent. A judge that says yes more readily to some problems makes them vary in opposite
    directions; the interval is then too wide.
    """
    if first is None or second is None:
        return None
    value = (first.value + second.value) / 2
    low = value - math.hypot(first.value - first.low, second.value - second.low) / 2
    high = value + math.hypot(first.high - first.value, second.high - second.value) / 2
    return Interval(value, low, high)


def difference(after: Interval, before: Interval) -> Interval:
    """Return `after` - `before`, from -1 to 1, by MOVER as `mean_of` does. Rates over the same problems are taken as
    independent, which is conservative."""
    value = after.value - before.value
    low = value - math.hypot(after.value - after.low, before.high - before.value)
    high = value + math.hypot(after.high - after.value, before.value - before.low)
    return Interval(value, low, high)
