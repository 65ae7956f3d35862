"""What each trained token adds to the change of the entropy of held-out tokens, to first order.

An update moves the weights by lr * P * sum over tokens of A_n grad log p_n / N: eq. 10 where every ratio is 1, with N
counting all tokens. P is 1 for plain gradient descent, and for Adam 1 / (sqrt(second moment) + eps) for each weight.
The mean held-out entropy H then changes by

    lr * sum over tokens of A_n / N * <P grad H, grad log p_n>,

and the last factor is the derivative of log p_n along P grad H. So one gradient, that of H, and two forward passes,
with the weights moved a little along P grad H and back, give what *every* token adds. Any classes of tokens are sums of
these, which add up to the whole; their intervals over prompts need no more passes. A gradient for each class would need
a backward pass for each class and each threshold, and has no such intervals.

Shapes: T output tokens of a sample, N those of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from ulorl.evaluation.stored_evaluation import AnswerScores
from ulorl.learner.batching import Batch, Row, collate, microbatches
from ulorl.learner.experience import Experience

Direction = dict[str, Tensor]  # a change of the weights, by the name of the parameter
MOVED = 0.01  # of the entropy: how much the weights are moved along a direction


class EntropyDerivatives:
    """Derivatives of a policy's entropies and log-probs by its weights, in micro-batches. The weights stay as they are.

    policy: returns log-probs and entropies of a batch's output tokens [N], both with gradient (`learner.policy.Policy`
    with `entropy_gradient`). pad_id: the token for padding. microbatch_tokens: the most tokens of one forward pass,
    padding included.
    """

    def __init__(self, policy: nn.Module, *, pad_id: int, microbatch_tokens: int) -> None:
        self._policy, self._pad_id, self._microbatch_tokens = policy, pad_id, microbatch_tokens
        self._weights = {name: p for name, p in policy.named_parameters() if p.requires_grad}
        self._device = next(policy.parameters()).device

    def of_entropy(self, rows: Sequence[Row]) -> tuple[Direction, list[AnswerScores]]:
        """Return the gradient of the mean entropy over all output tokens of `rows`, and each row's log-probs and
        entropies in nats.

        The prefixes are those of `rows`: that an update also changes which prefixes are drawn is left out.
        """
        total = sum(len(row.tokens) for row in rows)
        scores: dict[int, AnswerScores] = {}
        for indices, batch in self._batches(rows):
            logprobs_N, entropy_N = self._policy(batch)
            (entropy_N.sum(dtype=torch.float64) / total).backward()
            lengths = [len(rows[i].tokens) for i in indices]
            parts = (values_N.detach().float().cpu().split(lengths) for values_N in (logprobs_N, entropy_N))
            for i, logprobs_T, entropy_T in zip(indices, *parts, strict=True):
                scores[i] = AnswerScores(logprobs_T.numpy(), entropy_T.numpy())
        return self._taken_gradient(), [scores[i] for i in range(len(rows))]

    def of_objective(self, groups: Sequence[Sequence[Experience]]) -> tuple[Direction, Direction]:
        """Return the gradient of the objective over all groups, and its second moment: the mean over groups of the
        square of the gradient that a batch of that group alone would have.

        Adam's running mean of squares is proportional to the second moment where the gradient of a batch is mostly
        noise.
        """
        tokens, count = sum(len(e.row.tokens) for group in groups for e in group), len(groups)
        total: Direction = {}
        squares: Direction = {}
        for group in groups:
            for indices, batch in self._batches([e.row for e in group]):
                logprobs_N, _ = self._policy(batch)
                advantages_B = torch.tensor([group[i].advantage for i in indices], device=self._device)
                objective = (logprobs_N * advantages_B[batch.sample_N]).sum(dtype=torch.float64)
                (objective / tokens).backward()
            for name, gradient in self._taken_gradient().items():
                square = count * gradient.square()
                total[name] = total[name].add_(gradient) if name in total else gradient
                squares[name] = squares[name].add_(square) if name in squares else square
        return total, squares

    @torch.no_grad()
    def along(self, direction: Direction, step: float, rows: Sequence[Row]) -> list[NDArray[np.float64]]:
        """Return the derivative along `direction` of the log-prob of each row's tokens, [T] each.

        It is the central difference of two forward passes, at the weights plus and minus step * direction; its error is
        of the order step².
        """
        ahead, back = (self._logprobs(rows, direction, signed) for signed in (step, -step))
        return [(one_T - other_T) / (2 * step) for one_T, other_T in zip(ahead, back, strict=True)]

    def _logprobs(self, rows: Sequence[Row], direction: Direction, step: float) -> list[NDArray[np.float64]]:
        moved = {name: self._weights[name].add(change, alpha=step) for name, change in direction.items()}
        found: dict[int, NDArray[np.float64]] = {}
        for indices, batch in self._batches(rows):
            logprobs_N, _ = functional_call(self._policy, moved, (batch,))
            parts = logprobs_N.double().cpu().split([len(rows[i].tokens) for i in indices])
            found |= {i: logprobs_T.numpy() for i, logprobs_T in zip(indices, parts, strict=True)}
        return [found[i] for i in range(len(rows))]

    def _batches(self, rows: Sequence[Row]) -> list[tuple[list[int], Batch]]:
        parts = microbatches(list(map(len, rows)), self._microbatch_tokens)
        return [(part, collate([rows[i] for i in part], self._pad_id, self._device)) for part in parts]

    def _taken_gradient(self) -> Direction:
        """Return the gradient that the backward passes left on the parameters, and take it away from them."""
        gradient = {name: p.grad for name, p in self._weights.items() if p.grad is not None}
        for parameter in self._weights.values():
            parameter.grad = None
        return gradient


def adam_scaled(gradient: Direction, squares: Direction, eps: float) -> Direction:
    """Return gradient / (sqrt(squares) + eps), weight by weight; 0 for a weight that no trained token has a gradient
    for, which Adam does not move."""
    return {
        name: torch.where(squares[name] > 0, change / (squares[name].sqrt() + eps), 0)
        for name, change in gradient.items()
        if name in squares
    }


def dot(one: Direction, other: Direction) -> float:
    """Return the dot product over the weights that both have."""
    return sum(float((one[name] * of).sum(dtype=torch.float64)) for name, of in other.items() if name in one)


def step_for(gradient: Direction, direction: Direction, change: float) -> float:
    """Return how far to go along `direction` for the entropy with this gradient to change by `change`, in nats, to
    first order. Raises ValueError where the entropy does not change along it."""
    slope = dot(gradient, direction)
    if not slope > 0:
        raise ValueError(f"the entropy has the slope {slope} along this direction; it must be above 0")
    return change / slope
