"""Sums over the tokens of an update by their age: versions between the one that generated a token and the update's
start. Shapes: N tokens of a micro-batch, A ages."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ulorl.learner.age_names import AGE_MEANS, AGES

Sums = NDArray[np.float64]


def _zeros() -> Sums:
    return np.zeros(len(AGES))


@dataclass(frozen=True)
class AgeSums:
    """Sums over tokens for each of AGES, [A]."""

    tokens: Sums = field(default_factory=_zeros)
    entropy: Sums = field(default_factory=_zeros)
    kept: Sums = field(default_factory=_zeros)  # tokens in the loss
    ratio: Sums = field(default_factory=_zeros)  # of them
    clipped: Sums = field(default_factory=_zeros)  # of them
    compared: Sums = field(default_factory=_zeros)  # tokens with log-probs under the weights at the update's start
    apart: Sums = field(default_factory=_zeros)  # of them: |log p at the start - log p recorded|

    @classmethod
    def of(
        cls, age_N: Tensor, *, entropy: Tensor, kept: Tensor, ratio: Tensor, clipped: Tensor, apart: Tensor | None
    ) -> AgeSums:
        """Sum up the tokens of a micro-batch, [N] each.

        ratio, clipped: 0 where a token is not in the loss. apart: differences of log-probs, at the start of the update
        and recorded; None: without those of the start.
        """
        tokens = _by_age(age_N)
        columns = {"entropy": entropy, "kept": kept, "ratio": ratio, "clipped": clipped}
        if apart is not None:
            columns |= {"compared": torch.ones_like(age_N), "apart": apart}
        return cls(tokens, **{name: _by_age(age_N, values_N) for name, values_N in columns.items()})

    def __add__(self, other: AgeSums) -> AgeSums:
        """Return the sums over both parts."""
        return AgeSums(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def means(self) -> dict[str, float]:
        """Return the share of each age, and the means over its tokens by metric name; absent without such tokens."""
        found = dict(zip(AGES, (self.tokens / self.tokens.sum()).tolist(), strict=True))
        pairs = ((self.ratio, self.kept), (self.clipped, self.kept), (self.apart, self.compared))
        for name, (sums, over) in zip(AGE_MEANS, (*pairs, (self.entropy, self.tokens)), strict=True):
            found |= {f"{age}/{name}": float(sums[i] / over[i]) for i, age in enumerate(AGES) if over[i]}
        return found


def _by_age(age_N: Tensor, values_N: Tensor | None = None) -> Sums:
    """Return the sum of the values for each age; without values, the number of tokens."""
    ages = age_N.clamp(0, len(AGES) - 1).cpu().numpy()
    weights = None if values_N is None else values_N.double().cpu().numpy()
    return np.bincount(ages, weights, minlength=len(AGES)).astype(np.float64)
