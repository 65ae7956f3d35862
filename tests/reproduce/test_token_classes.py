"""The attribution to classes of tokens, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ulorl.common.intervals import Interval, student
from ulorl.reproduce.token_classes import TrainedTokens, sentence, verdict

TOKENS = TrainedTokens(  # prompt 0: a right sample of 3 tokens; prompt 1: a wrong one of 2; prompt 2 trains on nothing
    prompts=3,
    prompt_N=np.array([0, 0, 0, 1, 1]),
    right_N=np.array([True, True, True, False, False]),
    logprobs_N=np.log(np.array([0.995, 0.9, 0.2, 0.999, 0.1], np.float32)),
    changes={"SGD": np.array([-1.0, -2.0, 2.0, -4.0, 1.0])},
)


def values(tau: float) -> list[float]:
    return [one.value for one in TOKENS.attribution("SGD", tau).values()]


def test_classes_by_hand() -> None:
    """At tau .99 the first token is the only MPT: -1. Others of the right sample: -2 + 2; the wrong sample, whose
    likely token is no MPT: -4 + 1. At .8 the second token is an MPT too: -1 - 2, which leaves +2."""
    assert values(0.99) == [-1, 0, -3, -3, -4]
    assert values(0.8) == [-3, 2, -3, -1, -4]


def test_interval_by_hand() -> None:
    """All: prompts add -1, -3 and 0; mean -4/3, s² = (1/9 + 25/9 + 16/9) / 2 = 7/3. The sum of three has the standard
    error sqrt(3 * 7/3), times t with 2 degrees of freedom."""
    found = TOKENS.attribution("SGD", 0.99)["all"]
    half = student(2) * math.sqrt(7)
    assert (found.low, found.high) == pytest.approx((-4 - half, -4 + half))


FALL, RISE, UNCLEAR = Interval(-0.9, -1, -0.8), Interval(0.5, 0.4, 0.6), Interval(-0.1, -0.3, 0.1)


@pytest.mark.parametrize(
    ("sgd", "adam", "expected"),
    [
        ((RISE, FALL), (RISE, FALL), "can"),
        ((FALL, FALL), (FALL, FALL), "cannot"),
        ((FALL, FALL), (RISE, FALL), "not resolved"),
        ((FALL, FALL), (UNCLEAR, FALL), "not resolved"),
        ((RISE, RISE), (RISE, RISE), "nothing to raise"),
        ((RISE, RISE), (RISE, FALL), "can"),
    ],
)
def test_verdict_needs_both_steps(
    sgd: tuple[Interval, Interval], adam: tuple[Interval, Interval], expected: str
) -> None:
    """Each step: what all tokens but MPTs do, and what all tokens do."""
    found = {step: {"all_but_mpts": rest, "all": whole} for step, (rest, whole) in {"SGD": sgd, "Adam": adam}.items()}
    assert verdict(found) == expected


def test_sentence() -> None:
    found = {"SGD": {"mpts": UNCLEAR, "all_but_mpts": FALL, "all": FALL}}
    assert sentence(found, 0.95) == (
        "tau 0.95: masking MPTs cannot raise entropy here: the other tokens by themselves lower it. "
        "MPTs add -0.1 of -0.9 (SGD), in 1e-3 nats."
    )
