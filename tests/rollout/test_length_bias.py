"""How much shorter than the started samples those are that train, from counted tokens."""

from __future__ import annotations

import numpy as np
import pytest

from ulorl.rollout.length_bias import KEPT, LengthBias


def test_short_samples_train_first() -> None:
    """Samples of 1, 2, 3 and 6 tokens, the last one cut at L = 6, in segments of 2; what is complete trains.

    Step 1: 4 samples decode a first token, 1 ends; 3 decode a second, 1 ends. A started sample is known to have
    1 + 3/4 tokens at least; (1 + 2) / 2 = 1.5 are trained. Step 2: 2 decode a third, 1 ends; 1 decodes a fourth:
    1 + 3/4 + 2/4 + 1/4 = 2.5. Step 3: it decodes the rest: 2.5 + 2/4 = 3, which is the mean of 1, 2, 3 and 6.
    """
    bias = LengthBias(max_tokens=6)
    assert (bias.started_length, bias.ratio) == (None, None)
    bias.add(before=[0, 0, 0, 0], after=[1, 2, 2, 2], complete=[True, True, False, False], trained=[1, 2])
    assert bias.started_length == pytest.approx(1.75)
    assert bias.ratio == pytest.approx(1.5 / 1.75)
    bias.add(before=[2, 2], after=[3, 4], complete=[True, False], trained=[3])
    assert bias.started_length == pytest.approx(2.5)
    assert bias.ratio == pytest.approx((3 * KEPT + 3) / (2 * KEPT + 1) / 2.5)
    bias.add(before=[4], after=[6], complete=[False], trained=[6])
    assert bias.started_length == pytest.approx(3)
    bias.add(before=[], after=[], complete=[], trained=[])
    assert bias.started_length == pytest.approx(3)


def test_long_outputs_that_are_stopped_and_carried_over() -> None:
    """Outputs of any length, stopped at random: every step starts 1,000 samples and decodes up to 500 further tokens of
    each that is unfinished. As soon as some are as long as the longest, the estimate is the mean of all. The first step
    trains only outputs of up to 500 tokens."""
    rng, bias = np.random.default_rng(1), LengthBias(4096)
    lengths, done = np.array([], dtype=int), np.array([], dtype=int)
    ratios = []
    for _ in range(30):
        lengths = np.append(lengths, np.clip(rng.lognormal(6, 1, 1000), 1, 4096).astype(int))
        done = np.append(done, np.zeros(1000, dtype=int))
        after = np.minimum(lengths, done + rng.integers(100, 500, len(done)))
        ended = after == lengths
        bias.add(done, after, ended & (lengths < 4096), lengths[ended])  # type: ignore[arg-type]
        ratios.append(bias.ratio)
        lengths, done = lengths[~ended], after[~ended]
    mean = float(np.clip(rng.lognormal(6, 1, 1_000_000), 1, 4096).mean())
    assert bias.started_length == pytest.approx(mean, rel=0.02)
    assert (ratios[0] or 1) < 0.7
    assert ratios[-1] == pytest.approx(1, abs=0.03)


def test_the_state_is_all_of_it() -> None:
    bias = LengthBias(300)
    bias.add([0, 7], [120, 300], [True, False], [120])
    other = LengthBias(300, bias.state)
    for each in (bias, other):
        each.add([0], [77], [False], [])
    assert other.state == bias.state
    assert other.ratio == bias.ratio
