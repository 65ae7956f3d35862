"""Draws follow exact distributions, and a row's draw depends only on its own logits and number."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ulorl.engines.torch.sampling import draw, truncate
from ulorl.rng import uniforms


def draw_all(
    logits: torch.Tensor, uniform: np.ndarray, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    n = len(logits)
    return draw(logits, uniform, np.full(n, temperature), np.full(n, top_p), np.full(n, top_k))


def test_inverse_cdf_by_hand() -> None:
    """p = 1/2, 0, 1/4, 1/4: cumulative 1/2, 1/2, 3/4, 1. Intervals are closed below and open above."""
    logits = torch.tensor([[0.5, 0.0, 0.25, 0.25]]).log().expand(8, -1)
    numbers = np.array([0.0, 0.25, np.nextafter(0.5, 0), 0.5, 0.7, 0.75, 0.9, np.nextafter(1.0, 0)])
    tokens, logprobs = draw_all(logits, numbers)
    assert tokens.tolist() == [0, 0, 0, 2, 2, 3, 3, 3]
    np.testing.assert_allclose(logprobs, np.log([0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.25]), rtol=1e-6)


def test_logprobs_are_of_the_full_vocabulary_at_the_temperature() -> None:
    """Logits ln 4, ln 1 at temperature 1/2 are ln 16, ln 1: 16/17. Top-k 1 leaves that log-prob as it is; greedy
    records temperature 1: 4/5."""
    logits = torch.tensor([[math.log(4.0), 0.0]])
    for kwargs, expected in (
        ({"temperature": 0.5}, 16 / 17),
        ({"temperature": 0.5, "top_k": 1}, 16 / 17),
        ({"temperature": 0.5, "top_p": 0.1}, 16 / 17),
        ({"temperature": 0.0}, 4 / 5),
    ):
        tokens, logprobs = draw_all(logits, np.array([0.2]), **kwargs)
        assert tokens.tolist() == [0]
        assert logprobs[0] == pytest.approx(math.log(expected), abs=1e-6)


@pytest.mark.parametrize(
    ("top_p", "top_k", "kept"),
    [
        (1.0, 0, [0.1, 0.4, 0.2, 0.3]),
        (1.0, 2, [0.0, 0.4, 0.0, 0.3]),
        (0.7, 0, [0.0, 0.4, 0.0, 0.3]),  # 0.4 + 0.3 reach 0.7
        (0.71, 0, [0.0, 0.4, 0.2, 0.3]),
        (0.05, 0, [0.0, 0.4, 0.0, 0.0]),  # the most probable token always stays
        (0.8, 3, [0.0, 0.4, 0.2, 0.3]),  # of 0.9 left, 0.7 / 0.9 = 0.78 is short of 0.8
        (0.77, 3, [0.0, 0.4, 0.0, 0.3]),
        (1.0, 99, [0.1, 0.4, 0.2, 0.3]),
    ],
)
def test_truncation_by_hand(top_p: float, top_k: int, kept: list[float]) -> None:
    probs = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
    result = truncate(probs, np.array([top_p, 1.0]), np.array([top_k, 0]))
    np.testing.assert_allclose(result, [kept, [0.25] * 4])  # the second row has both off


def test_mixed_rows_draw_what_they_draw_alone() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 50) * 3
    numbers = np.random.default_rng(0).random(6)
    temperature = np.array([1.0, 0.0, 0.7, 1.3, 1.0, 0.0])
    top_p, top_k = np.array([1.0, 1.0, 0.9, 1.0, 0.5, 0.3]), np.array([0, 0, 0, 5, 20, 0])
    together = draw(logits, numbers, temperature, top_p, top_k)
    for row in range(6):
        one = slice(row, row + 1)
        alone = draw(logits[one], numbers[one], temperature[one], top_p[one], top_k[one])
        assert alone[0][0] == together[0][row]
        assert alone[1][0] == together[1][row]


@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, 0), (0.9, 0), (1.0, 4), (0.8, 6)])
def test_counter_based_draws_follow_the_distribution(top_p: float, top_k: int) -> None:
    """Chi-square of 20,000 draws, seeds and positions as the engine has them; the bound is the 99.9% point or wider."""
    torch.manual_seed(1)
    n, logits = 20_000, torch.randn(1, 10) * 1.5
    numbers = uniforms(np.arange(n, dtype=np.uint64) // 100, np.arange(n, dtype=np.int64) % 100)
    tokens, _ = draw_all(logits.expand(n, -1), numbers, 0.85, top_p, top_k)
    probs = truncate((logits / 0.85).softmax(-1).double(), np.array([top_p]), np.array([top_k]))[0].numpy()
    expected = n * probs / probs.sum()
    counts = np.bincount(tokens, minlength=10)
    assert (counts[expected == 0] == 0).all()
    live = expected > 0
    assert ((counts[live] - expected[live]) ** 2 / expected[live]).sum() < 27.9  # 99.9% point at 9 degrees of freedom


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 1e-300, 0.3, 1 - 2**-53]),
    st.sampled_from([2, 110, 151_936]),
    st.sampled_from([0, 1, 3]),
)
def test_never_draws_a_token_of_probability_zero(seed: int, number: float, vocabulary: int, top_k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, vocabulary, generator=generator) * 5
    logits[0, torch.randint(vocabulary, (vocabulary // 2,), generator=generator)] = float("-inf")
    if not logits.isfinite().any():
        logits[0, 0] = 0.0
    tokens, logprobs = draw_all(logits, np.array([number]), 1.0, 1.0, top_k)
    assert np.isfinite(logprobs[0])
    if top_k:
        assert logits[0, tokens[0]] >= logits[0].topk(min(top_k, vocabulary)).values[-1]


def test_chunks_of_rows_do_not_change_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    logits, numbers = torch.randn(7, 30), np.random.default_rng(3).random(7)
    whole = draw_all(logits, numbers, 0.9, 0.95, 10)
    monkeypatch.setattr("ulorl.engines.torch.sampling._CHUNK", 60)
    parts = draw_all(logits, numbers, 0.9, 0.95, 10)
    assert [a.tolist() for a in whole] == [a.tolist() for a in parts]
