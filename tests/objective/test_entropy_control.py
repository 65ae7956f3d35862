"""The controls of entropy by hand arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ulorl.objective.entropy_control import (
    adapted_coefficient,
    clip_cov_tokens,
    covariances,
    entropy_bonus,
    kl_cov_penalty_sum,
    kl_cov_tokens,
    top_entropy_tokens,
)

# log p   -1  -3  -2  -4   mean -2.5: 1.5  -.5   .5  -1.5
# A        3  -1   1  -3   mean  0
# product                  4.5   .5   .5   4.5
COV = torch.tensor([4.5, 0.5, 0.5, 4.5], dtype=torch.float64)


def test_covariances_by_hand() -> None:
    found = covariances(torch.tensor([-1.0, -3.0, -2.0, -4.0]), torch.tensor([3.0, -1.0, 1.0, -3.0]))
    assert torch.equal(found, COV)
    assert found.mean() == 2.5  # (4.5 + .5 + .5 + 4.5) / 4, the covariance


def test_their_mean_is_the_covariance() -> None:
    rng = np.random.default_rng(0)
    logprobs, advantages = -rng.random(50), rng.normal(size=50)
    expected = np.cov(logprobs, advantages, bias=True)[0, 1]
    found = covariances(torch.from_numpy(logprobs), torch.from_numpy(advantages))
    assert float(found.mean()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("share", "low", "high", "expected"),
    [
        (0.25, 1.0, 5.0, [0, 0, 0, 1]),  # one of four: of the first and the last, that with the lower draw
        (0.5, 1.0, 5.0, [1, 0, 0, 1]),
        (1.0, 1.0, 5.0, [1, 0, 0, 1]),  # no more than there are between the bounds
        (0.01, 1.0, 5.0, [0, 0, 0, 1]),  # at least one
        (0.5, 0.0, 4.5, [0, 1, 1, 0]),  # the bounds are outside
        (0.5, 5.0, 9.0, [0, 0, 0, 0]),  # no candidates
    ],
)
def test_clip_cov_by_hand(share: float, low: float, high: float, expected: list[int]) -> None:
    draws = torch.tensor([0.9, 0.1, 0.2, 0.3])
    assert clip_cov_tokens(COV, draws, share=share, low=low, high=high).int().tolist() == expected


def test_kl_cov_by_hand() -> None:
    cov, draws = torch.tensor([0.1, 0.4, -2.0, 0.3]), torch.tensor([0.9, 0.1, 0.2, 0.3])
    assert kl_cov_tokens(cov, draws, 0.5).tolist() == [False, True, False, True]
    assert kl_cov_tokens(cov, draws, 0.01).tolist() == [False, True, False, False]  # at least one
    assert kl_cov_tokens(COV, draws, 0.25).tolist() == [False, False, False, True]  # of two, that with the lower draw


def test_kl_cov_chooses_its_share_among_tokens_that_are_equally_likely() -> None:
    """300 of 1,000 tokens have the log-prob 0 and the advantage 3, the highest covariance; 10 are chosen, of these."""
    logprobs, advantages = torch.full((1000,), -2.0), torch.full((1000,), -1.0)
    logprobs[:300], advantages[:300] = 0.0, 3.0
    draws = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    chosen = kl_cov_tokens(covariances(logprobs, advantages), draws, 0.01)
    assert int(chosen.sum()) == 10
    assert chosen.nonzero().squeeze(1).tolist() == sorted(draws[:300].argsort()[:10].tolist())


def test_the_penalty_of_kl_cov_by_hand() -> None:
    """|-.5 - -1| + |-3 - -2.5| = 1; the sign of the difference is the gradient."""
    now = torch.tensor([-0.5, -3.0, -9.0], requires_grad=True)
    penalty = kl_cov_penalty_sum(now, torch.tensor([-1.0, -2.5, 0.0]), torch.tensor([True, True, False]))
    penalty.backward()
    assert penalty.item() == 1.0
    assert now.grad is not None
    assert now.grad.tolist() == [1.0, -1.0, 0.0]


def test_the_penalty_has_no_gradient_where_the_policies_are_equal() -> None:
    now = torch.tensor([-0.5], requires_grad=True)
    kl_cov_penalty_sum(now, now.detach(), torch.tensor([True])).backward()
    assert now.grad is not None
    assert now.grad.tolist() == [0.0]


def test_top_entropy_by_hand() -> None:
    entropy = torch.tensor([0.1, 0.9, 0.0, 0.5, 0.2])
    assert top_entropy_tokens(entropy, 0.2).tolist() == [False, True, False, False, False]
    assert top_entropy_tokens(entropy, 0.21).tolist() == [False, True, False, True, False]  # 1.05, rounded up
    assert top_entropy_tokens(entropy, 1.0).all()
    assert top_entropy_tokens(torch.zeros(3), 0.2).all()  # ties


def test_the_coefficient_by_hand() -> None:
    settings = {"target": 0.2, "step": 0.005, "highest": 0.01}
    path, coefficient = [], 0.0
    for entropy in (0.1, 0.1, 0.1, 0.3, 0.2, 0.1):
        path.append((coefficient, entropy_bonus(coefficient, entropy, 0.2)))
        coefficient = adapted_coefficient(coefficient, entropy, **settings)
    # rises to the highest, falls at .3 and at .2 (not below the target), where the bonus of the update is 0 and .005
    expected = [(0.0, 0.0), (0.005, 0.005), (0.01, 0.01), (0.01, 0.0), (0.005, 0.005), (0.0, 0.0)]
    for found, wanted in zip(path, expected, strict=True):
        assert found == pytest.approx(wanted, abs=1e-12)
    assert coefficient == 0.005
    assert adapted_coefficient(0.0, math.inf, **settings) == 0.0
