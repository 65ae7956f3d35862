from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ulorl.objective.mpt import masked_tokens, mpt_tokens, sample_mean

# Sample 0 is right with H = (.1 + .2 + .0) / 3 = .1; sample 1 wrong; sample 2 right with H = (.5 + .1) / 2 = .3.
P = torch.tensor([0.995, 0.5, 0.99, 0.999, 0.2, 0.992, 0.98])
ENTROPY = torch.tensor([0.1, 0.2, 0.0, 0.01, 0.01, 0.5, 0.1])
SAMPLE = torch.tensor([0, 0, 0, 1, 1, 2, 2])
CORRECT = torch.tensor([True, False, True])


def masked(**settings: Any) -> list[int]:
    tokens = masked_tokens(P.log(), ENTROPY, SAMPLE, CORRECT, **{"tau": 0.99, "sigma": 0.2, **settings})
    return tokens.int().tolist()


def test_mpts_by_hand() -> None:
    assert mpt_tokens(P.log(), CORRECT[SAMPLE], 0.99).int().tolist() == [1, 0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"mask": "off"}, [0, 0, 0, 0, 0, 0, 0]),
        ({"mask": "all"}, [1, 0, 1, 0, 0, 1, 0]),
        ({"mask": "all", "sigma": 0.0}, [1, 0, 1, 0, 0, 1, 0]),  # `all` knows no target entropy
        ({"mask": "dynamic"}, [1, 0, 1, 0, 0, 0, 0]),  # H_0 = .1 < .2 <= H_2 = .3
        ({"mask": "dynamic", "sigma": 0.31}, [1, 0, 1, 0, 0, 1, 0]),
        ({"mask": "dynamic", "sigma": 0.0}, [0, 0, 0, 0, 0, 0, 0]),
        ({"mask": "dynamic", "tau": 0.4}, [1, 1, 1, 0, 0, 0, 0]),
        ({"mask": "dynamic", "batch_entropy": 0.19}, [1, 0, 1, 0, 0, 1, 0]),
        ({"mask": "dynamic", "batch_entropy": 0.2}, [0, 0, 0, 0, 0, 0, 0]),  # at sigma: trained
    ],
)
def test_masks_by_hand(settings: dict[str, Any], expected: list[int]) -> None:
    assert masked(**settings) == expected


def test_entropy_exactly_at_sigma_is_trained() -> None:
    for entropy, expected in ((0.25, False), (0.2499, True)):  # .25 is exact in binary
        tokens = masked_tokens(
            torch.zeros(4), torch.full((4,), entropy), torch.zeros(4, dtype=torch.int64), torch.tensor([True]),
            mask="dynamic", tau=0.99, sigma=0.25,
        )  # fmt: skip
        assert tokens.tolist() == [expected] * 4


@pytest.mark.parametrize("tau", [0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_probability_of_exactly_tau_is_mastered(tau: float, dtype: torch.dtype) -> None:
    at = torch.tensor([tau], dtype=torch.float64).log().to(dtype)
    below = torch.nextafter(at, torch.tensor([-torch.inf], dtype=dtype))
    assert mpt_tokens(torch.cat([at, below]), torch.tensor([True, True]), tau).tolist() == [True, False]


def test_masks_are_constants_to_the_gradient() -> None:
    logprobs, entropy = P.log().requires_grad_(), ENTROPY.clone().requires_grad_()
    assert not sample_mean(entropy, SAMPLE, 3).requires_grad
    mask = masked_tokens(logprobs, entropy, SAMPLE, CORRECT, mask="dynamic", tau=0.99, sigma=0.2)
    assert mask.dtype == torch.bool
    assert not mask.requires_grad


def test_sample_means_by_hand() -> None:
    values = torch.tensor([1.0, 2.0, 6.0, 4.0, 8.0])
    mean = sample_mean(values, torch.tensor([0, 2, 0, 2, 0]), 4)
    assert mean.tolist() == [5.0, 0.0, 3.0, 0.0]  # (1 + 6 + 8) / 3, none, (2 + 4) / 2, none


def test_sample_mean_of_a_long_sample_keeps_its_digits() -> None:
    # In float32, adding 0.1 to a running sum 131,072 times drifts by 1e-3 of it.
    values = torch.full((131_072,), 0.1)
    mean = sample_mean(values, torch.zeros(131_072, dtype=torch.int64), 1)
    assert abs(mean.item() - values[0].item()) < 1e-12


@given(st.data())
def test_equals_a_plain_loop_and_does_not_care_for_order_or_splitting(data: st.DataObject) -> None:
    B = data.draw(st.integers(1, 5))
    N = data.draw(st.integers(B, 20))
    sample = list(range(B)) + data.draw(st.lists(st.integers(0, B - 1), min_size=N - B, max_size=N - B))
    p = data.draw(st.lists(st.floats(0.5, 1), min_size=N, max_size=N))
    entropy = data.draw(st.lists(st.floats(0, 1), min_size=N, max_size=N))
    correct = data.draw(st.lists(st.booleans(), min_size=B, max_size=B))
    tau, sigma = data.draw(st.floats(0.5, 1)), data.draw(st.floats(0, 1))

    logprobs_N, entropy_N = torch.tensor(p).double().log(), torch.tensor(entropy).double()
    sample_N, correct_B = torch.tensor(sample), torch.tensor(correct)

    def run(rows: torch.Tensor, samples: torch.Tensor) -> list[bool]:
        numbers = torch.full((B,), -1)
        numbers[samples] = torch.arange(len(samples))
        return masked_tokens(
            logprobs_N[rows], entropy_N[rows], numbers[sample_N[rows]], correct_B[samples],
            mask="dynamic", tau=tau, sigma=sigma,
        ).tolist()  # fmt: skip

    own = [[entropy_N[i].item() for i in range(N) if sample[i] == b] for b in range(B)]
    mean = sample_mean(entropy_N, sample_N, B).tolist()
    assert mean == pytest.approx([sum(values) / len(values) for values in own])
    expected = [
        correct[sample[i]] and logprobs_N[i].item() >= math.log(tau) and mean[sample[i]] < sigma for i in range(N)
    ]
    everything = torch.arange(N)
    assert run(everything, torch.arange(B)) == expected
    reverse = torch.arange(B - 1, -1, -1)  # the samples in another order
    assert run(everything, reverse) == expected
    for b in range(B):  # each sample a micro-batch of its own
        rows = (sample_N == b).nonzero().squeeze(1)
        assert run(rows, torch.tensor([b])) == [expected[i] for i in rows.tolist()]


def test_an_unknown_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="off, all or dynamic, found 'some'"):
        masked(mask="some")
