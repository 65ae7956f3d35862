"""The gradient of tiled entropies against the dense one."""

from __future__ import annotations

import math

import pytest
import torch

from dense_heads import HEADS, leaves, make, naive
from ulorl.learner.logprobs import _Projection, token_logprobs
from ulorl.models.head import Head


def test_the_gradient_of_the_entropy_by_hand() -> None:
    """Logits (ln 2, 0, ln 5), p = .25 .125 .625, H = .900256: dH / d logit = -p (log p + H) = .121510 .147398 -.268908,
    which add up to 0; times the hidden state 1 they are the gradient of the weight."""
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[math.log(2)], [0.0], [math.log(5)]], requires_grad=True)
    _, entropy = token_logprobs(hidden, Head(weight), torch.tensor([0]), 1.0, entropy_gradient=True)
    entropy.sum().backward()
    assert weight.grad is not None
    assert weight.grad.squeeze(1).tolist() == pytest.approx([0.121510, 0.147398, -0.268908], abs=1e-5)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("kept", [0, 6 * 9])
@pytest.mark.parametrize(("tokens", "words"), [(6, 9), (4, 4), (1, 2)])
def test_the_gradient_of_the_entropy_equals_the_dense_one(
    kind: str, kept: int, tokens: int, words: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, of log-probs and entropies together; some tokens have a gradient of one of the two only."""
    monkeypatch.setattr("ulorl.learner.logprobs.KEPT", kept)
    hidden, head, targets = make(6, 5, 9, torch.float64, **HEADS[kind])
    to_logprob, to_entropy = torch.tensor([[1.0, 0, -2, 0, 0.5, 0], [0.3, 1, 0, 0, -1, 0]], dtype=torch.float64)
    found = token_logprobs(hidden, head, targets, 0.7, chunk_tokens=tokens, chunk_words=words, entropy_gradient=True)
    expected = naive(hidden, head, targets, 0.7)
    ours, theirs = (
        torch.autograd.grad((lp * to_logprob + h * to_entropy).sum(), leaves(hidden, head))
        for lp, h in (found, expected)
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_entropies_have_a_gradient_only_on_request() -> None:
    hidden, head, targets = make(3, 4, 5)
    assert not token_logprobs(hidden, head, targets, 1.0)[1].requires_grad
    assert token_logprobs(hidden, head, targets, 1.0, entropy_gradient=True)[1].requires_grad


def test_the_gradient_of_the_entropy_costs_nothing_where_it_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the updates of an entropy bonus whose factor is 0."""
    hidden, head, targets = make(3, 4, 5)
    monkeypatch.setattr(_Projection, "entropy_excess", None)  # a call would fail
    logprobs, _ = token_logprobs(hidden, head, targets, 1.0, entropy_gradient=True)
    ours = torch.autograd.grad(logprobs.sum(), leaves(hidden, head))
    theirs = torch.autograd.grad(naive(hidden, head, targets, 1.0)[0].sum(), leaves(hidden, head))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
