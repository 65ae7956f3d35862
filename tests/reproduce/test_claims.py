"""The verdicts of `ulorl reproduce`, by hand arithmetic."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from ulorl.common.intervals import Interval, mean_interval
from ulorl.reproduce.claims import above, below, compared, held, within


def test_interval_mean_interval() -> None:
    """1, 2 and 3: mean 2, s = 1, t(2) = 4.303, half = 4.303 / sqrt(3) = 2.484. `student` is within 0.8%."""
    found = mean_interval([1.0, 2.0, 3.0])
    assert found.value == 2
    assert found.high - 2 == pytest.approx(2.484, rel=0.01)
    assert 2 - found.low == pytest.approx(found.high - 2)


def test_one_seed_resolves_baseline() -> None:
    """The interval of a single run is infinite, so every claim stays open."""
    found = mean_interval([0.7])
    assert found == Interval(0.7, -math.inf, math.inf)
    assert above("a", "b", found).verdict == below("a", "b", found).verdict == "not resolved at this scale"
    assert above("a", "b", found, unit="points").measured == "b +70.0 points"


def test_equal_seeds_resolve_nothing() -> None:
    """Three equal values say nothing of how much others would vary."""
    assert mean_interval([0.0, 0.0, 0.0]) == Interval(0, -math.inf, math.inf)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.81, 1.19, "reproduced"),
        (0.8, 1.2, "reproduced"),
        (0.79, 1.0, "not resolved at this scale"),
        (0.5, 1.5, "not resolved at this scale"),
        (0.1, 0.79, "not reproduced"),
        (1.21, 3.0, "not reproduced"),
    ],
)
def test_within(low: float, high: float, verdict: str) -> None:
    """The claim holds when the whole interval is inside the bounds, and fails when it lies outside on one side."""
    assert within("t", "q", Interval((low + high) / 2, low, high), 0.8, 1.2).verdict == verdict


def test_above_and_below() -> None:
    """An interval that touches 0 does not resolve the sign."""
    assert above("t", "q", Interval(0.1, 0.05, 0.15)).verdict == "reproduced"
    assert above("t", "q", Interval(0.1, 0.0, 0.2)).verdict == "not resolved at this scale"
    assert above("t", "q", Interval(-0.1, -0.2, 0.0)).verdict == "not reproduced"
    assert below("t", "q", Interval(0.4, 0.3, 0.49), bound=0.5).verdict == "reproduced"
    assert below("t", "q", Interval(0.6, 0.51, 0.7), bound=0.5).verdict == "not reproduced"


def test_held_needs_a_baseline_elsewhere() -> None:
    """A target that the baseline is at too shows nothing; one that it is wholly away from does."""
    at_target = Interval(1.0, 0.9, 1.1)
    assert held("t", "q", at_target, Interval(0.5, 0.4, 0.6), 0.8, 1.2).verdict == "reproduced"
    claim = held("t", "q", at_target, Interval(0.75, 0.6, 0.9), 0.8, 1.2)
    assert str(claim) == ("t: **not resolved at this scale** (q (of all tokens 0.75) 1.00, 95%: 0.90 to 1.10)")
    assert held("t", "q", Interval(0.5, 0.4, 0.6), at_target, 0.8, 1.2).verdict == "not reproduced"


def test_compared() -> None:
    """A comparison without a claim says the direction, where the interval excludes 0."""
    verdicts = [compared("t", "q", Interval(x, x - 1, x + 1), "nats").verdict for x in (2, 0, -2)]
    assert verdicts == ["higher", "not resolved at this scale", "lower"]


def test_text() -> None:
    """A claim says its verdict and the figures behind it."""
    claim = above("Entropy rises", "ratio", Interval(1.25, 1.125, 1.375), bound=1.0)
    assert str(claim) == "Entropy rises: **reproduced** (ratio 1.25, 95%: 1.12 to 1.38)"
    assert replace(claim, over="seeds only").measured == "ratio 1.25, 95% over seeds only: 1.12 to 1.38"
    assert within("t", "q", Interval(0.05, 0.01, 0.09), 0, 1, "points").measured == "q +5.0 points, 95%: +1.0 to +9.0"
    assert within("t", "q", Interval(-0.05, -0.09, 0), 0, 1, "nats").measured == "q -0.050 nats, 95%: -0.090 to +0.000"
