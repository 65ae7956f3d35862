"""Reads the finished runs of an arm: curves over steps, and figures for each seed. Shapes: S seeds, T steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ulorl.reproduce.arms import Arm
from ulorl.reproduce.held_out_scores import Array, Scores, scores_of
from ulorl.runs.problem_counts import read_counts
from ulorl.runs.saved_run import SavedRun, common_curve

ENTROPY = "entropy/finished"  # of all finished samples, not only the trained groups, whose population moves
_START_STEPS = 3


@dataclass(frozen=True, eq=False)
class ArmResults:
    """The finished runs of an arm, in the order of their seeds."""

    arm: Arm
    runs: tuple[SavedRun, ...]

    def curve(self, key: str) -> tuple[list[int], Array]:
        """Return the steps at which every seed has the metric `key`, and its values there, [S, T]."""
        return common_curve(self.runs, key)

    @property
    def entropy_start(self) -> Array:
        """The mean entropy of three steps, from the first one in which samples of any length can finish, [S]: before
        it, those that finish are the short ones."""
        return np.array([_start_entropy(run) for run in self.runs])

    @property
    def entropy_end(self) -> Array:
        """The mean entropy of the last third of the steps, [S]."""
        return self.last_third(ENTROPY)

    def last_third(self, key: str) -> Array:
        """Return the mean of a metric over the last third of the steps, [S]; nan where it was never measured."""
        steps, values_ST = self.curve(key)
        if not steps:
            return np.full(len(self.runs), np.nan)
        last: Array = values_ST[:, len(steps) - max(1, len(steps) // 3) :].mean(axis=1)
        return last

    def evaluation(self, key: str, *, before: bool = False) -> Array:
        """Return a metric of the evaluation after training, or before it, [S]; nan where it was not measured."""
        at = [dict(zip(*run.series(key), strict=True)) for run in self.runs]
        return np.array([one.get(step, np.nan) for one, step in zip(at, self._evaluated(before), strict=True)])

    def scores(self, key: str, *, before: bool = False) -> Scores:
        """Return `ACCURACY` or `PASS` of the evaluation after training, or before it. Raises UserError when a run's
        counts of the problems are damaged."""
        steps = self._evaluated(before)
        counts = [read_counts(run.dir, step) for run, step in zip(self.runs, steps, strict=True)]
        return scores_of(key, self.evaluation(key, before=before), counts, int(self.runs[0].setting("eval.samples")))

    def _evaluated(self, before: bool) -> list[int]:
        return [0 if before else int(run.setting("steps") or 0) for run in self.runs]


def _start_entropy(run: SavedRun) -> float:
    first = int(run.setting("rollout.segments") or 1)
    values = [value for step, value in zip(*run.series(ENTROPY), strict=True) if step >= first]
    return float(np.mean(values[:_START_STEPS])) if values else float("nan")
