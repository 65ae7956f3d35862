"""Starts the log of a run, and starts a run again from its newest checkpoint, in the same process, when it loses its
learner."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ulorl.config.tree import Config
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.learner.learner import LearnerLost
from ulorl.runs import run_folder
from ulorl.runs.environment import write_environment
from ulorl.runs.run_log import Position, RunLog
from ulorl.runs.terminal_lines import print_line
from ulorl.training import checkpoint
from ulorl.training.build import Components, with_new_learner
from ulorl.training.checkpoint import Checkpoint, Counters
from ulorl.training.preflight import Inputs
from ulorl.types import Metrics

if TYPE_CHECKING:
    from ulorl.backends.ray.ray_backend import RayBackend

MOST = 3  # restarts in a row without a new checkpoint

Start = tuple[Counters, RunLog]


def beginning(cfg: Config, inputs: Inputs, console: Console) -> Start:
    """Empty the run's folder, and return the counters and the log of a new run."""
    run_dir = Path(cfg.run.dir)
    with checkpoint.writing(run_dir):
        run_folder.clear(run_dir)
        run_folder.save_config(cfg)
        write_environment(run_dir)
        log = RunLog(run_dir, cfg, console=console)
    # The evaluation before training is what step 0 still lacks.
    pending: Metrics | None = {"step": 0, "version": 0} if inputs.held_out else None
    return Counters(problems=inputs.fingerprint, pending=pending), log


def continuation(cfg: Config, saved: Checkpoint, console: Console) -> Start:
    """Remove what was logged after a checkpoint, and return the counters and the log of the run that resumes from
    it."""
    run_dir, counters = Path(cfg.run.dir), saved.counters
    with checkpoint.writing(run_dir):
        run_folder.save_config(cfg)
        write_environment(run_dir)
        logged = Position(counters.logged, counters.timeline)
        log = RunLog(run_dir, cfg, counters.step, console=console, logged=logged)
    return counters, log


class LearnerRestarts:
    """Makes a new learner for a run that has lost its own, up to `MOST` times in a row without a new checkpoint."""

    def __init__(self, run_dir: Path, console: Console, backend: RayBackend | None) -> None:
        self._run_dir, self._console, self._backend = run_dir, console, backend
        self._from: Path | None = None  # the checkpoint of the last restart
        self._in_row = 0

    def restart(self, components: Components, lost: LearnerLost) -> tuple[Components, Counters, RunLog]:
        """Return the run with a new learner, its counters and its log.

        Pools, data cursor and log return to the checkpoint with the weights, so that nothing is lost and nothing is
        trained twice; the engines stay. Raises UserError after too many restarts without a new checkpoint.
        """
        cfg = components.config
        while True:
            folder = checkpoint.newest(self._run_dir)
            self._count(folder, lost)
            saved = checkpoint.load(folder, cfg.rollout.group) if folder else None
            where = f"from {folder}" if folder else "from the beginning"
            print_line(self._console, f"{lost}; the run starts again {where}", style="yellow")
            try:
                components = with_new_learner(components, saved, self._backend)
            except LearnerLost as again:
                lost = again
                continue
            if saved:
                counters, log = continuation(cfg, saved, self._console)
            else:
                counters, log = beginning(cfg, components.inputs, self._console)
            return components, counters, log

    def _count(self, folder: Path | None, lost: LearnerLost) -> None:
        self._in_row = self._in_row + 1 if folder == self._from else 1
        self._from = folder
        if self._in_row > MOST:
            raise UserError(
                f"{self._run_dir}: {MOST} restarts of the learner did not bring the run to a new checkpoint; at last, "
                f"{lost}. Resume with: {checkpoint.resume_command(self._run_dir)}",
                code=ErrorCode.LEARNER_LOST,
                file=self._run_dir,
            ) from lost
