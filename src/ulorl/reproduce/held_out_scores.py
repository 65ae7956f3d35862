"""Accuracy and pass@k of an arm's evaluations, with intervals that count both errors: what other seeds would give, and
what other problems would. Shapes: S seeds, P held-out problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ulorl.common.intervals import Interval, crossed_mean, mean_interval
from ulorl.evaluation.estimators import pass_at_k
from ulorl.runs.problem_counts import ProblemCounts

ACCURACY, PASS = "eval/accuracy", "eval/pass_at_k"
SEEDS_AND_PROBLEMS, SEEDS_ONLY = "seeds and problems", "seeds only"

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scores:
    """Accuracy or pass@k, or a difference of two of them.

    by_seed: as the run logged it, [S]. problems: ids; () where not all seeds stored counts of the same problems.
    by_problem: [S, P], or [S, 0]; nan where too few answers to a problem were scored.
    """

    by_seed: Array
    problems: tuple[str, ...]
    by_problem: Array

    def __sub__(self, other: Scores) -> Scores:
        """Return the difference seed by seed and problem by problem: runs share seeds and problems."""
        by_seed = self.by_seed - other.by_seed
        if self.problems != other.problems:
            return Scores(by_seed, (), np.empty((len(by_seed), 0)))
        return Scores(by_seed, self.problems, self.by_problem - other.by_problem)

    @property
    def over(self) -> str:
        """What the interval counts: `SEEDS_AND_PROBLEMS`, or `SEEDS_ONLY` without counts of the problems."""
        return SEEDS_AND_PROBLEMS if self._complete.size else SEEDS_ONLY

    @property
    def interval(self) -> Interval:
        """The mean with its 95% interval, over the problems that every seed scored; without counts of the problems,
        over seeds."""
        return crossed_mean(self._complete) if self._complete.size else mean_interval(self.by_seed)

    @property
    def _complete(self) -> Array:
        found: Array = self.by_problem[:, ~np.isnan(self.by_problem).any(axis=0)]
        return found


def scores_of(key: str, by_seed: Array, counts: Sequence[ProblemCounts | None], samples: int) -> Scores:
    """Return the accuracy or pass@k of one evaluation of each seed.

    key: `ACCURACY` or `PASS`. by_seed: what the runs logged, [S]. counts: those that they stored. samples: k.
    """
    stored = [one for one in counts if one is not None]
    problems = {tuple(one.problems) for one in stored}
    if len(stored) < len(by_seed) or len(problems) != 1:
        return Scores(by_seed, (), np.empty((len(by_seed), 0)))
    rows = [[_score(key, *of_one, samples) for of_one in zip(one.right, one.scored, strict=True)] for one in stored]
    return Scores(by_seed, problems.pop(), np.array(rows))


def _score(key: str, right: int, scored: int, samples: int) -> float:
    least = 1 if key == ACCURACY else samples
    if scored < least:
        return float("nan")
    return right / scored if key == ACCURACY else pass_at_k(scored, right, samples)
