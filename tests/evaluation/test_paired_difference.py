"""The paired comparison by hand arithmetic, and how often its interval covers the truth."""

from __future__ import annotations

import numpy as np
import pytest

from ulorl.evaluation.paired_difference import paired_difference


def test_by_hand() -> None:
    """Differences 1/2, 0, 1/4, 1/4: mean 1/4; s = sqrt((1/16 + 1/16) / 3) = 0.204124; s / 2 = 0.102062; the 97.5%
    quantile of t with 3 degrees of freedom is 3.182446: 1/4 ± 0.324807. The fifth problem has no pair."""
    found = paired_difference([1.0, 0.5, 0.25, 0.75, None], [0.5, 0.5, 0.0, 0.5, 1.0])
    assert found is not None
    assert found.value == 0.25
    assert (found.low, found.high) == pytest.approx((0.25 - 0.324807, 0.25 + 0.324807), rel=1e-2)
    assert found.problems == 4
    assert not found.resolved


def test_pairing_takes_out_the_difficulty_of_the_problems() -> None:
    """Problems from 0% to 90%; the second model is 10 points better on each but one. Unpaired, the spread of the
    problems would hide that."""
    shares = [n / 10 for n in range(10)]
    better = [*(share + 0.1 for share in shares[:-1]), 0.9]
    found = paired_difference(better, shares)
    assert found is not None
    assert found.value == pytest.approx(0.09)
    assert found.resolved
    swapped = paired_difference(shares, better)
    assert swapped is not None
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))


def test_equal_differences_have_no_interval() -> None:
    assert paired_difference([0.5, 0.5], [0.5, 0.5]) is None
    assert paired_difference([1.0], [0.0]) is None
    assert paired_difference([0.3, 0.1], [0.2, 0.0]) is None  # equal but for rounding
    with pytest.raises(ValueError, match="3 and 2 problems"):
        paired_difference([0.0] * 3, [0.0] * 2)


def test_coverage_against_the_bootstrap() -> None:
    """30 problems with 8 answers each of two models, whose probabilities differ by problem; 1,000 repetitions. The
    interval should cover the true difference in 95% of them; a percentile bootstrap over problems covers fewer."""
    rng = np.random.default_rng(0)
    problems, answers, repetitions, draws = 30, 8, 1000, 400
    covered = bootstrapped = 0
    for _ in range(repetitions):
        difficulty = rng.beta(0.6, 0.6, problems)
        gain = rng.choice([0.0, 0.0, 0.3], problems)
        one, other = np.clip(difficulty + gain, 0, 1), difficulty
        # over all problems that could be drawn: the mean of min(b + g, 1) - b, with g = 0.3 for a third of them
        first, second = rng.binomial(answers, one) / answers, rng.binomial(answers, other) / answers
        found = paired_difference(first.tolist(), second.tolist())
        assert found is not None
        covered += found.low <= TRUTH <= found.high
        means = (first - second)[rng.integers(problems, size=(draws, problems))].mean(axis=1)
        low, high = np.quantile(means, (0.025, 0.975))
        bootstrapped += bool(low <= TRUTH <= high)
    assert 0.93 <= covered / repetitions <= 0.975
    assert bootstrapped < covered


def _truth() -> float:
    """A third of E[min(0.3, 1 - b)], b ~ Beta(0.6, 0.6), by a fine sample of its own."""
    b = np.random.default_rng(1).beta(0.6, 0.6, 2_000_000)
    return float(np.minimum(0.3, 1 - b).mean()) / 3


TRUTH = _truth()
