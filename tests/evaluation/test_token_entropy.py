"""Entropy, MPTs and their share of the entropy: by hand, and against a dense computation in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tiny_learner import V, tiny_model
from ulorl.evaluation.stored_evaluation import AnswerScores
from ulorl.evaluation.token_entropy import entropy_figures, score_tokens
from ulorl.learner.policy import Policy


def scores(probabilities: list[float], entropies: list[float]) -> AnswerScores:
    return AnswerScores(np.log(np.array(probabilities, np.float32)), np.array(entropies, np.float32))


RIGHT = scores([1.0, 0.5, 0.995, 0.2], [0.0, 0.75, 0.25, 1.0])
WRONG = scores([1.0, 0.999, 0.3], [0.125, 0.125, 1.75])


def test_figures_by_hand() -> None:
    """7 tokens with 4 nats together. MPTs are the first and the third token of the right answer: 2 of 7, which carry
    1/4 of a nat: 1/16 of the entropy. Likely tokens of the wrong answer are none."""
    found = entropy_figures([(RIGHT, 4, True), (WRONG, 3, False)], tau=0.99)
    assert found.mean == pytest.approx(4 / 7)
    assert found.mpts == pytest.approx(2 / 7)
    assert found.mpt_entropy == pytest.approx(1 / 16)


def test_figures_of_cut_answers() -> None:
    """Cut at 2 tokens, neither is right: (0 + 3/4 + 1/8 + 1/8) / 4 nats."""
    found = entropy_figures([(RIGHT, 2, False), (WRONG, 2, False)], tau=0.99)
    assert (found.mean, found.mpts, found.mpt_entropy) == (0.25, 0.0, 0.0)
    certain = entropy_figures([(scores([1.0], [0.0]), 1, True)], tau=0.99)
    assert (certain.mean, certain.mpts, certain.mpt_entropy) == (0.0, 1.0, None)


@pytest.mark.parametrize("budget", [1, 24, 1000])  # each output alone, some together, all together
def test_scores_equal_dense_ones_in_float64(budget: int) -> None:
    model, temperature = tiny_model().double(), 0.85
    policy = Policy(model, temperature, autocast=False, cpu_kernels=True)
    rng = np.random.default_rng(0)
    outputs = [
        (rng.integers(1, V, p).astype(np.int32), rng.integers(1, V, t).astype(np.int32))
        for p, t in ((3, 7), (5, 1), (2, 12), (4, 7))
    ]
    found = score_tokens(policy, outputs, pad_id=0, microbatch_tokens=budget)
    for (prompt, tokens), one in zip(outputs, found, strict=True):
        ids = torch.from_numpy(np.concatenate([prompt, tokens]).astype(np.int64))[None]
        with torch.no_grad():
            logits_TV = model(input_ids=ids).logits[0, len(prompt) - 1 : -1] / temperature
        logprobs_TV = logits_TV.log_softmax(-1)
        expected = logprobs_TV.gather(1, torch.from_numpy(tokens.astype(np.int64))[:, None])[:, 0]
        assert one.logprobs == pytest.approx(expected.numpy(), rel=1e-5)
        entropies = -(logprobs_TV.exp() * logprobs_TV).sum(-1)
        assert one.entropies == pytest.approx(entropies.numpy(), rel=1e-5)
        assert (one.entropies <= math.log(V)).all()
