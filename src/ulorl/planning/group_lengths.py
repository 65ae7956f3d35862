"""Output lengths of groups for the rollout planner: samples of one problem are alike.

A length is a pure function of the seed and the sample's id, so that all schedules meet the same samples.
Shapes: N groups, G samples a group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.planning.output_lengths import Lengths
from ulorl.rng import Stream, sample_seeds, uniforms

_NORMAL = NormalDist()
_Z95 = _NORMAL.inv_cdf(0.95)


class GroupLengths(Protocol):
    """Lengths of the samples of groups, by group id."""

    def draw(self, seed: int, first: int, groups: int, group: int) -> NDArray[np.int64]:
        """Return the output tokens of the samples of groups first, first + 1, ..., [groups, group], at least 1."""
        ...


@dataclass(frozen=True)
class RecordedLengths:
    """Lengths as they were recorded: a problem, by its weight, then samples of that problem.

    scale: multiplies every length. correlation: of siblings, where the file names no problems, between 0 and 1: the
    share of a sample's normal score that its problem decides (a Gaussian copula).
    """

    lengths: Lengths
    scale: float = 1.0
    correlation: float = 0.0

    def draw(self, seed: int, first: int, groups: int, group: int) -> NDArray[np.int64]:
        by_problem = np.argsort(self.lengths.problems, kind="stable")
        tokens, problems = self.lengths.tokens[by_problem], self.lengths.problems[by_problem]
        ends = np.cumsum(self.lengths.probabilities[by_problem])
        ends[-1] = 1.0
        if problems.any():
            picked_N = problems[np.searchsorted(ends, _group_uniforms(seed, first, groups), side="right")]
            bounds = np.append(0.0, ends[np.append(np.flatnonzero(np.diff(problems)), -1)])  # of the problems
            width_N1 = (bounds[picked_N + 1] - bounds[picked_N])[:, None]
            at_NG = bounds[picked_N][:, None] + _sample_uniforms(seed, first, groups, group) * width_N1
        elif self.correlation:
            at_NG = _cumulative(_correlated_normals(seed, first, groups, group, self.correlation))
        else:
            at_NG = _sample_uniforms(seed, first, groups, group)
        drawn = tokens[np.minimum(np.searchsorted(ends, at_NG, side="right"), len(ends) - 1)]
        return _whole(drawn * self.scale)


@dataclass(frozen=True)
class LogNormalLengths:
    """Lengths exp(mu + sigma z), cut at `cap`. correlation: of the z of siblings, between 0 and 1."""

    mu: float
    sigma: float
    cap: int
    correlation: float = 0.0

    def draw(self, seed: int, first: int, groups: int, group: int) -> NDArray[np.int64]:
        z_NG = _correlated_normals(seed, first, groups, group, self.correlation)
        return _whole(np.exp(self.mu + self.sigma * z_NG).clip(1, self.cap))


def log_normal_lengths(mean: float, p95: float, cap: int, correlation: float = 0.0) -> LogNormalLengths:
    """Return the log-normal whose lengths, cut at `cap` tokens, have this mean and this 95th percentile.

    Raises UserError when there is none: p95 must lie between the mean and the cap, and a log-normal's mean is at least
    .26 of its 95th percentile.
    """
    low, high = 1e-3, _Z95  # the mean falls with sigma up to here, where a log-normal without a cap has its minimum
    if not (p95 < cap and _cut_mean(p95, high, cap) <= mean <= _cut_mean(p95, low, cap)):
        raise UserError(
            f"no log-normal has a mean of {mean:g} and a 95th percentile of {p95:g} tokens when it is cut at {cap}; "
            f"the percentile must be below the cut, and the mean between {_cut_mean(p95, high, cap):.0f} and {p95:g}",
            code=ErrorCode.PLAN_INPUT,
            key="workload.mean",
        )
    for _ in range(60):
        sigma = (low + high) / 2
        low, high = (sigma, high) if _cut_mean(p95, sigma, cap) > mean else (low, sigma)
    return LogNormalLengths(math.log(p95) - _Z95 * high, high, cap, correlation)


def _cut_mean(p95: float, sigma: float, cap: int) -> float:
    """Return the mean of min(X, cap) for a log-normal X with this 95th percentile."""
    mu, log_cap = math.log(p95) - _Z95 * sigma, math.log(cap)
    below = math.exp(mu + sigma**2 / 2) * _NORMAL.cdf((log_cap - mu - sigma**2) / sigma)
    return below + cap * _NORMAL.cdf((mu - log_cap) / sigma)


def _whole(lengths: NDArray[np.float64]) -> NDArray[np.int64]:
    rounded: NDArray[np.int64] = np.ceil(lengths).clip(1).astype(np.int64)
    return rounded


def _cumulative(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    probabilities: NDArray[np.float64] = np.array([_NORMAL.cdf(score) for score in scores.flat]).reshape(scores.shape)
    return probabilities


def _group_uniforms(seed: int, first: int, groups: int, position: int = 0) -> NDArray[np.float64]:
    return _uniforms(seed, first, groups, position)


def _sample_uniforms(seed: int, first: int, groups: int, group: int, position: int = 2) -> NDArray[np.float64]:
    return _uniforms(seed, first * group, groups * group, position).reshape(groups, group)


def _uniforms(seed: int, first: int, count: int, position: int) -> NDArray[np.float64]:
    seeds = np.array(sample_seeds(seed, range(first, first + count), Stream.LENGTHS), dtype=np.uint64)
    return uniforms(seeds, np.full(count, position))


def _correlated_normals(seed: int, first: int, groups: int, group: int, correlation: float) -> NDArray[np.float64]:
    """Return standard normals [N, G]; those of a group have this correlation."""
    common_N = _normals(_group_uniforms(seed, first, groups), _group_uniforms(seed, first, groups, 1))
    own_NG = _normals(_sample_uniforms(seed, first, groups, group), _sample_uniforms(seed, first, groups, group, 3))
    scores: NDArray[np.float64] = math.sqrt(correlation) * common_N[:, None] + math.sqrt(1 - correlation) * own_NG
    return scores


def _normals(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return standard normals from two uniforms in [0, 1) each (Box and Muller 1958)."""
    normals: NDArray[np.float64] = np.sqrt(-2 * np.log1p(-first)) * np.cos(2 * math.pi * second)
    return normals


class DrawnLengths:
    """Returns the output tokens of the samples of a group by its id, from a source that draws many groups at once."""

    def __init__(self, source: GroupLengths, seed: int, group: int, block: int = 1024) -> None:
        self._source, self._seed, self._group, self._block = source, seed, group, block
        self._drawn: list[list[int]] = []  # of groups that are asked for in rising order
        self._first = 0

    def __call__(self, id: int) -> list[int]:
        """Return the lengths of group `id`."""
        if not self._first <= id < self._first + len(self._drawn):
            self._first = id - id % self._block
            self._drawn = self._source.draw(self._seed, self._first, self._block, self._group).tolist()
        return self._drawn[id - self._first]
