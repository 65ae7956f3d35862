"""How long an output is going to be, learnt from outputs to the same problem (Seer, arXiv 2511.14617, section 3.3).

Sources: the finished siblings of a sample, and the last visit of its problem.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


class ExpectedLengths:
    """The output tokens of the last visit of each problem, by problem id: those of all its samples, and how many
    samples they are."""

    def __init__(self, visits: Mapping[str, tuple[int, int]] | None = None) -> None:
        self._visits = dict(visits or {})
        self._tokens = sum(tokens for tokens, _ in self._visits.values())
        self._samples = sum(samples for _, samples in self._visits.values())

    @property
    def visits(self) -> Mapping[str, tuple[int, int]]:
        """Output tokens and samples of the last visit of each problem, by problem id."""
        return self._visits

    def learn(self, problem: str, tokens: int, samples: int) -> None:
        """Take note of a visit that is over: `samples` outputs of `tokens` tokens together."""
        before = self._visits.get(problem, (0, 0))
        self._visits[problem] = tokens, samples
        self._tokens += tokens - before[0]
        self._samples += samples - before[1]

    def mean(self, problem: str) -> float:
        """Return the mean output tokens at the last visit of a problem, of all problems for one without a visit, and 0
        when there was no visit at all."""
        tokens, samples = self._visits.get(problem, (self._tokens, self._samples))
        return tokens / samples if samples else 0.0


def expected_length(tokens: int, finished: int, before: float, max_tokens: int) -> float:
    """Return the output tokens that an unfinished sample of a group is expected to end with.

    tokens: of its `finished` siblings. before: the mean of earlier visits, which counts as one sibling more; 0:
    unknown. max_tokens: L, which is expected when nothing is known.
    """
    count = finished + (before > 0)
    return (tokens + before) / count if count else max_tokens


def expected_rest(present: int, length: float, max_tokens: int) -> float:
    """Return the tokens that a sample with `present` tokens is expected to lack, when its expected length is `length`.

    It is not expected to be further than half-way: a sample that is long already often becomes longer than its
    siblings.
    """
    return min(max(length, 2 * present), max_tokens) - present


def expected_rests(present: NDArray[Any], lengths: NDArray[Any], max_tokens: int) -> NDArray[Any]:
    """Return `expected_rest` of many samples, [n]. present: their tokens, [n]. lengths: their expected lengths, [n]."""
    found: NDArray[Any] = np.minimum(np.maximum(lengths, 2 * present), max_tokens) - present
    return found
