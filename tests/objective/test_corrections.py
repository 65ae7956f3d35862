"""Engine masks and MinPRO's prefix minimum by hand arithmetic. Truncated weights: test_mismatch.py."""

from __future__ import annotations

import pytest
import torch

from ulorl.objective.corrections import engine_kept, engine_weights, smallest_prefix_ratio

# pi_old / pi_engine   sample 0: .4  .5  5     product 1, geometric mean 1
#                      sample 1: 5.1 .2        product 1.02, mean 1.01
#                      sample 2: 3   3         product 9, mean 3
RATIOS = torch.tensor([0.4, 0.5, 5.0, 5.1, 0.2, 3.0, 3.0], dtype=torch.float64)
SAMPLE = torch.tensor([0, 0, 0, 1, 1, 2, 2])
RECORDED = torch.full((7,), -2.0, dtype=torch.float64)
OLD = RECORDED + RATIOS.log()


@pytest.mark.parametrize(
    ("level", "low", "high", "expected"),
    [
        ("off", 0.5, 5.0, [1, 1, 1, 1, 1, 1, 1]),
        ("token", 0.49, 5.01, [0, 1, 1, 0, 0, 1, 1]),
        ("token", 0.0, 5.01, [1, 1, 1, 0, 1, 1, 1]),  # no lower bound
        ("sequence", 0.5, 5.0, [1, 1, 1, 1, 1, 0, 0]),
        ("sequence", 0.5, 1.01, [1, 1, 1, 0, 0, 0, 0]),
        ("sequence_mean", 0.5, 5.0, [1, 1, 1, 1, 1, 1, 1]),
        ("sequence_mean", 0.99, 1.005, [1, 1, 1, 0, 0, 0, 0]),
    ],
)
def test_engine_masks_by_hand(level: str, low: float, high: float, expected: list[int]) -> None:
    found = engine_kept(OLD, RECORDED, SAMPLE, 3, level=level, low=low, high=high)  # type: ignore[arg-type]
    assert found.int().tolist() == expected


def test_icepop_is_a_token_mask_with_weights() -> None:
    """The weight of IcePop: k for .5 <= k <= 5, else 0."""
    kept = engine_kept(OLD, RECORDED, SAMPLE, 3, level="token", low=0.49, high=5.01)
    weights = engine_weights(OLD, RECORDED, cap=5.01) * kept
    torch.testing.assert_close(weights, torch.tensor([0, 0.5, 5, 0, 0, 3, 3], dtype=torch.float64))


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="sequence_mean, found 'word'"):
        engine_kept(OLD, RECORDED, SAMPLE, 3, level="word", low=0.5, high=5.0)  # type: ignore[arg-type]


def test_the_smallest_ratio_of_a_prefix_by_hand() -> None:
    """Of .4 .5 5: nothing before, .4, .4; of 5.1 .2: nothing, 5.1; of 3 3: nothing, 3. MinPRO's ratios are products."""
    smallest = smallest_prefix_ratio(RATIOS.log(), SAMPLE).exp()
    torch.testing.assert_close(smallest, torch.tensor([1, 0.4, 0.4, 1, 5.1, 1, 3], dtype=torch.float64))
    torch.testing.assert_close(
        (RATIOS * smallest), torch.tensor([0.4, 0.2, 2.0, 5.1, 1.02, 3.0, 9.0], dtype=torch.float64)
    )


def test_corrections_are_constants_to_the_gradient() -> None:
    leaf = OLD.clone().requires_grad_()
    assert not smallest_prefix_ratio(leaf * 1, SAMPLE).requires_grad
    assert not engine_weights(leaf * 1, RECORDED, cap=2.0).requires_grad
