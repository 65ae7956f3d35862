from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ulorl.objective.advantage import group_advantages, is_informative


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        # mean 1/4; squares (9 + 1 + 1 + 1) / 16 = 3/4; variance 3/4 / 3 = 1/4; std 1/2
        ([1, 0, 0, 0], [1.5, -0.5, -0.5, -0.5]),
        # mean 1/2; squares 8 / 4 = 2; variance 2/7 (Bessel; 1/4 without); std .534522; .5 / .534522 = .935414
        ([1, 1, 1, 1, 0, 0, 0, 0], [0.9354143] * 4 + [-0.9354143] * 4),
        # soft punishment makes rewards other than 0 and 1: mean 0; squares 1 + 0 + 1; variance 1; std 1
        ([1, 0, -1], [1, 0, -1]),
        ([1, 1], [0, 0]),
        ([0, 0, 0], [0, 0, 0]),
    ],
)
def test_by_hand(rewards: list[float], expected: list[float]) -> None:
    torch.testing.assert_close(
        group_advantages(torch.tensor(rewards, dtype=torch.float32)), torch.tensor(expected, dtype=torch.float32)
    )


def test_equal_rewards_whose_mean_is_rounded_give_exact_zeros() -> None:
    assert group_advantages(torch.full((7,), 0.1)).tolist() == [0.0] * 7


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=16), st.randoms(use_true_random=False))
def test_properties_of_binary_rewards(rewards: list[float], random: object) -> None:
    advantages = group_advantages(torch.tensor(rewards))
    order = list(range(len(rewards)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert torch.equal(group_advantages(torch.tensor(rewards)[order]), advantages[order])
    informative = 0 < sum(rewards) < len(rewards)
    assert is_informative(torch.tensor(rewards)) == informative
    assert math.isclose(advantages.double().sum(), 0, abs_tol=1e-5)
    # the sum of squared standardised values is G - 1, by Bessel's definition
    assert math.isclose(advantages.double().square().sum(), len(rewards) - 1 if informative else 0, rel_tol=1e-5)
    assert all((a > 0) == (r == 1) for a, r in zip(advantages, rewards, strict=True)) or not informative


@pytest.mark.parametrize("rewards", [torch.tensor([1.0]), torch.zeros(0), torch.zeros(2, 4)])
def test_what_is_no_group_is_refused(rewards: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="at least 2 samples"):
        group_advantages(rewards)
