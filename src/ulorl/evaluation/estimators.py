"""The estimators of an evaluation, as pure functions of numbers.

Every problem is answered k times. Answers to one problem are not independent, so problems are the unit of every error.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WINDOW, REPEATED = 20, 0.5  # of `is_repetitive`


def mean_with_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean over problems and its standard error, s / sqrt(n) with the sample standard deviation s.

    The mean of nothing and the error of fewer than two problems are NaN.
    """
    n = len(values)
    mean = float(np.mean(values)) if n else math.nan
    return mean, float(np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else math.nan


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the unbiased estimate of the probability that at least one of k answers is right, from n answers of which
    c are right: 1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, eq. 1).

    Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} needs at least {k} answers and at most as many right ones, found {n} and {c}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def maj_at_k(votes: Sequence[Hashable], right: Sequence[bool]) -> float:
    """Return whether the most frequent answer to one problem is right: 1 or 0; where several answers are the most
    frequent, the share of right ones among them, which is the expectation of a fair draw (Wang et al. 2022,
    arXiv 2203.11171).

    All right answers are one answer, because each of them equals the reference.

    Args:
        votes: the answers in a comparable form; None does not vote. Without a vote the result is 0.
        right: whether each answer is right.
    """
    counts: dict[tuple[bool, Hashable], int] = {}
    for vote, is_right in zip(votes, right, strict=True):
        if vote is not None:
            answer = (is_right, None if is_right else vote)
            counts[answer] = counts.get(answer, 0) + 1
    most = max(counts.values(), default=0)
    winners = [is_right for (is_right, _), count in counts.items() if count == most]
    return sum(winners) / len(winners) if winners else 0.0


@dataclass(frozen=True)
class Lengths:
    """The distribution of output lengths in tokens. A quantile is a length that was observed: the smallest one that at
    least this share of the outputs does not exceed."""

    mean: float
    p50: int
    p90: int
    p99: int


def length_distribution(lengths: Sequence[int]) -> Lengths:
    """Return the distribution of the lengths of at least one output."""
    p50, p90, p99 = np.quantile(lengths, (0.5, 0.9, 0.99), method="inverted_cdf")
    return Lengths(float(np.mean(lengths)), int(p50), int(p90), int(p99))


def repeated_share(tokens: NDArray[np.int32], window: int = WINDOW) -> float:
    """Return the share of an output's windows of `window` tokens that occurred earlier in it: seq-rep-n of Welleck et
    al. 2020 (arXiv 1908.04319), 1 - distinct windows / windows. 0 for an output of at most one window.

    tokens: [T].
    """
    if len(tokens) < window + 1:
        return 0.0
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(tokens, np.int32), window)
    distinct = len({row.tobytes() for row in windows})
    return 1.0 - distinct / len(windows)


def is_repetitive(tokens: NDArray[np.int32]) -> bool:
    """Return whether an output repeats itself: at least half of its windows of 20 tokens occurred earlier in it.

    An output that decodes the same phrase until its end reaches half when it is about twice as long as what came before
    the loop; formulas that reasoning copies from line to line stay far below.
    """
    return repeated_share(tokens) >= REPEATED
