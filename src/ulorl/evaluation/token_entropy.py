"""Mean token entropy, the share of MPTs (eq. 9) and the share of the entropy that they carry.

An engine returns the log-prob of each token that it drew, and no entropy. Both are computed here as the learner
computes them, in one forward pass over the finished outputs, where logits exist a tile at a time and never as
[tokens x vocabulary].

Shapes: N output tokens of a micro-batch, T those of an answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ulorl.cancellation import NEVER, CancelToken
from ulorl.evaluation.stored_evaluation import AnswerScores
from ulorl.learner.batching import Row, collate, microbatches
from ulorl.learner.policy import Policy
from ulorl.types import Tokens


@dataclass(frozen=True)
class EntropyFigures:
    """The entropy of the answers to a suite, in nats."""

    mean: float  # over all output tokens
    mpts: float  # share of the tokens that are MPTs: of a right answer, with a probability of at least tau
    mpt_entropy: float | None  # share of the sum of all entropies that the MPTs carry; None: that sum is 0


def entropy_figures(answers: Iterable[tuple[AnswerScores, int, bool]], tau: float) -> EntropyFigures:
    """Return the figures of answers with at least one token together.

    Args:
        answers: the scores of each, how many of its tokens count (a lower length limit cuts it there), and whether it
            is right.
        tau: the probability of an MPT, in (0, 1].
    """
    tokens = mpts = 0
    entropy = mpt_entropy = 0.0
    for scores, length, right in answers:
        entropies = scores.entropies[:length].astype(np.float64)
        is_mpt = right & (scores.logprobs[:length] >= math.log(tau))  # as objective.mpt compares
        tokens, mpts = tokens + length, mpts + int(is_mpt.sum())
        entropy, mpt_entropy = entropy + float(entropies.sum()), mpt_entropy + float(entropies[is_mpt].sum())
    return EntropyFigures(entropy / tokens, mpts / tokens, mpt_entropy / entropy if entropy else None)


@torch.no_grad()
def score_tokens(
    policy: Policy,
    outputs: Sequence[tuple[Tokens, Tokens]],
    *,
    pad_id: int,
    microbatch_tokens: int,
    cancel: CancelToken = NEVER,
) -> list[AnswerScores]:
    """Return what a policy says of the tokens of each output, at the policy's temperature.

    outputs: prompt and output, of at least one token each. microbatch_tokens: the most tokens of one forward pass,
    padding included. Raises Cancelled before a micro-batch.
    """
    rows = [_row(prompt, tokens) for prompt, tokens in outputs]
    found: dict[int, AnswerScores] = {}
    for indices in microbatches(list(map(len, rows)), microbatch_tokens):
        cancel.check()
        logprobs_N, entropy_N = policy(collate([rows[i] for i in indices], pad_id, policy.device))
        lengths = [len(rows[i].tokens) for i in indices]
        pairs = zip(logprobs_N.float().cpu().split(lengths), entropy_N.float().cpu().split(lengths), strict=True)
        for i, (logprobs_T, entropy_T) in zip(indices, pairs, strict=True):
            found[i] = AnswerScores(logprobs_T.numpy(), entropy_T.numpy())
    return [found[i] for i in range(len(rows))]


def _row(prompt: Tokens, tokens: Tokens) -> Row:
    """Return a row without recorded log-probs, which only training needs."""
    return Row(prompt, tokens, np.zeros(len(tokens), np.float32), np.zeros(len(tokens), np.int32))
