"""Confidence intervals of clustered shares, against hand arithmetic, printed tables and simulation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ulorl.common.intervals import (
    Interval,
    crossed_mean,
    difference,
    mean_interval,
    mean_of,
    mean_share,
    rate,
    student,
    wilson,
)


def test_wilson_by_the_textbook() -> None:
    """8 of 10: centre (0.8 + z²/20) / (1 + z²/10), z² = 3.8415: 0.99207 / 1.38415 = 0.71674; half-width 1.95996 x
    sqrt(0.8 x 0.2 / 10 + 3.8415 / 400) / 1.38415 = 1.95996 x 0.16002 / 1.38415 = 0.22659."""
    found = wilson(0.8, 10)
    assert (found.low, found.high) == pytest.approx((0.49016, 0.94332), abs=2e-5)
    none = wilson(0.0, 20)  # upper limit z² / (n + z²)
    assert (none.low, none.high) == pytest.approx((0, 3.841459 / 23.841459))


def test_copies_within_problems_add_no_information() -> None:
    """10 problems of m equal verdicts each are 10 answers, for every m."""
    hits = [True] * 7 + [False] * 3
    for copies in (1, 2, 5):
        assert rate(hits * copies, list(range(10)) * copies) == wilson(0.7, 10)


def test_without_errors_the_problems_count() -> None:
    """Of unequal sizes m, as many as (sum m)² / (sum m²): 4, 1 and 1 are 36 / 18 = 2."""
    assert rate([True] * 30, ["a", "b", "c"] * 10) == wilson(1.0, 3)
    assert rate([True] * 6, ["a"] * 4 + ["b", "c"]) == wilson(1.0, 2)


def test_answers_to_one_problem_count_as_one_answer() -> None:
    assert rate([True, False] * 50, ["a"] * 100) == wilson(0.5, 1)
    assert mean_share([0.5], 100) == wilson(0.5, 1)


@pytest.mark.parametrize("unknown", ["", None])
def test_answers_without_a_problem_are_independent(unknown: str | None) -> None:
    assert rate([True] * 30, [unknown] * 30) == wilson(1.0, 30)
    assert rate([True] * 7 + [False] * 3, [unknown] * 10) == rate([True] * 7 + [False] * 3, range(10))


def test_a_problem_half_right_everywhere_is_no_less_than_its_pairs() -> None:
    """Each problem has one hit and one miss: no variance between problems, but no more than n pairs are effective."""
    assert rate([True, False] * 8, [i // 2 for i in range(16)]) == wilson(0.5, 16)


def test_limits_of_a_mean_by_hand() -> None:
    """0.9 (0.7 to 0.95) and 0.6 (0.45 to 0.72): low 0.75 - sqrt(0.2² + 0.15²) / 2 = 0.75 - 0.125; high 0.75 +
    sqrt(0.05² + 0.12²) / 2 = 0.75 + 0.065."""
    found = mean_of(Interval(0.9, 0.7, 0.95), Interval(0.6, 0.45, 0.72))
    assert found
    assert (found.value, found.low, found.high) == pytest.approx((0.75, 0.625, 0.815))
    assert mean_of(None, Interval(0.6, 0.4, 0.7)) is None


def test_effective_answers_by_hand() -> None:
    """4 problems x 4 answers, shares 1, 0.75, 0.5, 0.25: mean 0.625, deviations ±0.375, ±0.125, squares 0.140625 and
    0.015625, twice each: 0.3125 in all. Variance of the mean 0.3125 / 3 / 4 = 0.0260417; p (1 - p) = 0.234375, so 9
    answers. Kurtosis 4 x 2 (0.140625² + 0.015625²) / 0.3125² = 1.64; degrees of freedom min(3, 8 / (1.64 - 1 / 3) =
    6.1) = 3, t = 3.182: 9 x (1.95996 / 3.182)² = 3.41, fewer than the 4 problems: 4."""
    assert mean_share([1, 0.75, 0.5, 0.25], 16) == wilson(0.625, 4)


def test_degrees_of_freedom_by_hand() -> None:
    """30 problems, one of them with half of its answers right: mean 1/60, squares (29/60)² + 29 (1/60)² = 870/3600;
    variance of the mean 870/3600/29/30 = 1/3600; p (1 - p) = 59/3600, so 59 answers. Kurtosis 30 (29⁴ + 29) / 870² =
    28.0345; degrees of freedom 60 / (28.0345 - 27/29) = 2.2137, at which t = 3.9281 (scipy 1.17): 59 x (1.95996 /
    3.9281)² = 14.7, fewer than the 30 problems."""
    assert mean_share([0.5] + [0.0] * 29, 60) == wilson(1 / 60, 30)
    # An eighth of them right: mean 1/240, p (1 - p) = 239/57600, variance 1/57600: 239 answers, of which 59.5 are left.
    found = mean_share([0.125] + [0.0] * 29, 240)
    assert found
    assert found.high == pytest.approx(wilson(1 / 240, 59.5).high, rel=0.01)


@pytest.mark.parametrize(("freedom", "t"), [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042)])
def test_quantiles_of_t_as_printed_tables_have_them(freedom: float, t: float) -> None:
    assert student(freedom) == pytest.approx(t, rel=0.008)
    assert student(1e9) == pytest.approx(1.959964)


def test_nothing_right_and_one_wrong_in_30() -> None:
    """0 of 30: from 0 to z² / (30 + z²) = 0.1135; 29 of 30: below 1. The normal interval is 0 to 0, and up to 1.03."""
    none, most = mean_share([0.0] * 30, 30), mean_share([1.0] * 29 + [0.0], 30)
    assert none
    assert most
    assert (none.low, none.high) == pytest.approx((0, 0.11351), abs=1e-5)
    assert most.low == pytest.approx(0.83329, abs=1e-5)  # statsmodels' proportion_confint(29, 30, method="wilson")
    assert most.high == pytest.approx(0.99409, abs=1e-5)


def test_wilson_is_the_formula_of_statsmodels() -> None:
    """As statsmodels.stats.proportion.proportion_confint(count, nobs, 0.05, "wilson") computes it."""
    crit = 1.959963984540054
    for count, nobs in ((0, 7), (1, 30), (15, 30), (29, 30), (120, 1000)):
        q = count / nobs
        denom = 1 + crit**2 / nobs
        center = (q + crit**2 / (2 * nobs)) / denom
        dist = crit * np.sqrt(q * (1.0 - q) / nobs + crit**2 / (4.0 * nobs**2)) / denom
        found = wilson(q, nobs)
        assert (found.low, found.high) == pytest.approx((center - dist, center + dist), abs=1e-12)


def test_limits_of_a_difference_by_hand() -> None:
    """0.9 (0.7 to 0.95) - 0.6 (0.45 to 0.72): low 0.3 - sqrt(0.2² + 0.12²) = 0.0668; high 0.3 + sqrt(0.05² + 0.15²) =
    0.4581."""
    found = difference(Interval(0.9, 0.7, 0.95), Interval(0.6, 0.45, 0.72))
    assert (found.value, found.low, found.high) == pytest.approx((0.3, 0.066762, 0.458114), abs=1e-6)


def _beta(mean: float, alike: float) -> Callable[[np.random.Generator, int], NDArray[np.float64]]:
    """Rates of problems; 1 / (1 + alike) is the correlation between answers to one problem."""
    return lambda rng, count: rng.beta(mean * alike, (1 - mean) * alike, count)


def _mixed(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Most problems are nearly never solved, a few nearly always."""
    return np.where(rng.random(count) < 0.05, 0.9, 0.004)


@pytest.mark.parametrize(
    ("rates", "mean", "count", "samples", "least"),
    [
        (_beta(0.5, 1), 0.5, 30, 8, 0.93),
        (_beta(0.1, 1), 0.1, 30, 8, 0.93),
        (_beta(0.9, 0.3), 0.9, 30, 8, 0.93),
        (_beta(0.02, 1), 0.02, 30, 8, 0.93),
        (_beta(0.5, 1e6), 0.5, 30, 8, 0.93),
        (_beta(0.1, 1), 0.1, 10, 8, 0.93),
        (_beta(0.1, 1), 0.1, 30, 1, 0.93),
        (_beta(0.1, 5), 0.1, 200, 8, 0.93),
        (_mixed, 0.0488, 30, 8, 0.89),  # one evaluation in five sees none of the few: no method can know of them
    ],
)
def test_intervals_of_evaluations_hold_the_truth(
    rates: Callable[[np.random.Generator, int], NDArray[np.float64]],
    mean: float,
    count: int,
    samples: int,
    least: float,
) -> None:
    """2,000 draws; a standard error of the coverage is 0.005. The normal interval's, 30 problems x 8: 0.56 to 0.95."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(2000):
        found = mean_share((rng.binomial(samples, rates(rng, count)) / samples).tolist(), count * samples)
        assert found
        covered += found.low <= mean <= found.high
    assert covered / 2000 >= least


@given(st.lists(st.integers(0, 4), min_size=1), st.integers(0, 3))
def test_an_interval_of_shares_holds_its_mean_within_0_and_1(right: list[int], unscored: int) -> None:
    answers = 4 * len(right) - min(unscored, 3)
    found = mean_share([n / 4 for n in right], answers)
    assert found
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high


def test_intervals_cover_what_they_say() -> None:
    """500 draws of 60 problems with 1 to 6 pairs each, whose own rates vary (beta): about 95% hold the true balanced
    accuracy. Intervals that took the pairs for independent would hold it in 85%."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(500):
        intervals = []
        for a, b in ((1.6, 0.4), (1.2, 0.8)):  # means 0.8 and 0.6
            sizes = rng.integers(1, 7, 60)
            hits = rng.random(sizes.sum()) < np.repeat(rng.beta(a, b, 60), sizes)
            intervals.append(rate(hits.tolist(), np.repeat(np.arange(60), sizes).tolist()))
        found = mean_of(*intervals)
        assert found
        covered += found.low <= 0.7 <= found.high
    assert 0.925 <= covered / 500 <= 0.975


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1))
def test_an_interval_holds_its_rate_within_0_and_1(drawn: list[tuple[bool, int]]) -> None:
    hits, problems = zip(*drawn, strict=True)
    found = rate(hits, problems)
    assert found
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.value == pytest.approx(sum(hits) / len(hits))
    assert not math.isclose(found.low, found.high)


def test_seeds_and_problems_by_hand() -> None:
    """3 seeds with means 0.1, 0.2, 0.3: s² / 3 = 0.01 / 3 = 0.0033333. 4 problems with means 0, 0.1, 0.3, 0.4: s² / 4 =
    (0.04 + 0.01 + 0.01 + 0.04) / 3 / 4 = 0.0083333. Together 0.0116667, of which the root is 0.108012. Degrees of
    freedom 0.0116667² / (0.0033333² / 2 + 0.0083333² / 3) = 4.7419, at which t = 2.6132 (scipy 1.17): 0.2 ± 0.28226.

    Clark: F1 = 0.2² / 0.0033333 = 12 over seeds, F2 = 0.2² / 0.0083333 = 4.8 over problems, min F' = 12 x 4.8 / (12 +
    4.8) = 3.42857 with 16.8² / (12² / 3 + 4.8² / 2) = 4.7419 degrees of freedom; t² = 0.2² / 0.0116667 = 3.42857.
    """
    table = 0.2 + np.add.outer([-0.1, 0, 0.1], [-0.2, -0.1, 0.1, 0.2])
    table[:2, :2] += [[0.05, -0.05], [-0.05, 0.05]]  # a residual that moves no mean
    found = crossed_mean(table)
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.2 - 0.28226, 0.2 + 0.28226), abs=1e-3)
    swapped = crossed_mean(table.T)
    assert (swapped.low, swapped.high) == pytest.approx((found.low, found.high))


def test_many_problems_leave_the_error_of_the_seeds() -> None:
    """With 10,000 problems whose variance is 0.01, 0.2 ± 4.303 x sqrt(0.01 / 3 + 1e-6) as over seeds alone."""
    rng = np.random.default_rng(0)
    spread = rng.normal(0, 0.1, 10_000)
    table = np.add.outer([0.1, 0.2, 0.3], spread - spread.mean())
    seeds = mean_interval([0.1, 0.2, 0.3])
    assert crossed_mean(table).high == pytest.approx(seeds.high, rel=1e-3)


@pytest.mark.parametrize(
    "table", [[[0.1, 0.2]], [[0.1], [0.2]], [[0.1, 0.3], [0.3, 0.1]], [[0.1, 0.1], [0.3, 0.3]], [[0.0] * 3] * 3]
)
def test_equal_seeds_or_problems_say_nothing(table: list[list[float]]) -> None:
    found = crossed_mean(np.array(table))
    assert (found.low, found.high) == (-math.inf, math.inf)


@pytest.mark.parametrize("problems", [8, 100])
@pytest.mark.parametrize("of_seed", [0.0, 0.03])
def test_intervals_over_seeds_and_problems_hold_the_truth(problems: int, of_seed: float) -> None:
    """1,000 comparisons of two arms with 3 seeds and 8 answers to each problem. One arm is better by 32 points on half
    of the problems that could be drawn, and worse by 28 on the others: 2 points better. `of_seed`: the standard
    deviation of a run's own accuracy. 95% to 96% of the intervals hold the truth, and 75% to 91% of those over seeds
    alone."""
    rng, both, seeds_alone = np.random.default_rng(0), 0, 0
    for _ in range(1000):
        difficulty, gain = rng.uniform(0.4, 0.6, problems), rng.choice([0.32, -0.28], problems)
        runs = rng.normal(0, of_seed, (2, 3, 1))
        one, other = (np.clip(difficulty + effect, 0, 1) for effect in (gain + runs[0], runs[1]))
        table = (rng.binomial(8, one) - rng.binomial(8, other)) / 8
        found, seeds = crossed_mean(table), mean_interval(table.mean(axis=1))
        both += found.low <= 0.02 <= found.high
        seeds_alone += seeds.low <= 0.02 <= seeds.high
    assert 0.93 <= both / 1000 <= 0.985
    assert seeds_alone / 1000 < 0.92
