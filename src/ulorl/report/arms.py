"""Groups runs into the arms of an experiment: runs whose settings differ in the seed only are one arm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ulorl.common.key_paths import flatten
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.runs.saved_run import SavedRun, common_curve

_NO_DIFFERENCE = ("seed", "steps", "run.", "log.")  # keys in which runs of one arm may differ


@dataclass(frozen=True)
class Arm:
    """The runs of an experiment with the same settings and different seeds."""

    label: str
    runs: tuple[SavedRun, ...]

    def curve(self, key: str) -> tuple[list[int], NDArray[np.float64]]:
        """Return the steps at which every seed has the metric `key`, and its values there, [seeds, steps]."""
        return common_curve(self.runs, key)


def arms(runs: Sequence[SavedRun]) -> list[Arm]:
    """Group runs by the settings in which they differ, in the order given. Raises UserError without a run."""
    if not runs:
        raise UserError("give the folders of at least one run", code=ErrorCode.COMMAND_LINE)
    settings = [
        {key: value for key, value in flatten(run.config).items() if not key.startswith(_NO_DIFFERENCE)} for run in runs
    ]
    keys = sorted(set().union(*settings))
    differing = [k for k in keys if len({repr(s.get(k)) for s in settings}) > 1]
    grouped: dict[str, list[SavedRun]] = {}
    for run, setting in zip(runs, settings, strict=True):
        grouped.setdefault(", ".join(f"{k}={setting.get(k)}" for k in differing) or "all runs", []).append(run)
    return [Arm(label, tuple(of_arm)) for label, of_arm in grouped.items()]
