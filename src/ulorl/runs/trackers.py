"""Opens the trackers, which show a run elsewhere: TensorBoard, W&B, trackio and MLflow."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ulorl.common.redaction import without_secrets
from ulorl.config.training_config import LogConfig
from ulorl.config.tree import Config
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError, one_line
from ulorl.runs.guarded_tracker import GuardedTracker, Tracked, Warn, load_tracked, save_tracked
from ulorl.runs.mlflow_tracker import Mlflow
from ulorl.runs.tensorboard_tracker import TensorBoard
from ulorl.runs.tracker import Tracker
from ulorl.runs.trackio_tracker import Trackio
from ulorl.runs.wandb_tracker import Wandb


class _Kind(NamedTuple):
    title: str  # in messages
    open: Callable[[Path, Config, str], Tracker]
    fix: str  # what to do when it does not start


_KINDS = {  # by the key of [log], which is also the name of the package and of the extra
    "wandb": _Kind("W&B", Wandb, "log in, or set WANDB_MODE=offline"),
    "trackio": _Kind("trackio", Trackio, "check TRACKIO_DIR"),
    "mlflow": _Kind("MLflow", Mlflow, "check MLFLOW_TRACKING_URI; sqlite:///mlflow.db needs no server"),
}


def open_trackers(run_dir: Path, config: Config, warn: Warn, resume_step: int | None = None) -> list[GuardedTracker]:
    """Open TensorBoard, and the trackers that `config.log` switches on.

    warn: shows a message. resume_step: the step that the run resumes from, None for a new run. Raises UserError when a
    tracker of a new run does not start; a resumed run goes on without it.
    """
    trackers = [GuardedTracker("TensorBoard", TensorBoard(run_dir, config, resume_step), warn)]
    for name in _switched_on(config.log):
        try:
            trackers.append(_opened(name, run_dir, config, warn))
        except UserError as error:
            if resume_step is None:
                raise
            warn(f"{error}. The run goes on without it")
    return trackers


def require_trackers(log: LogConfig) -> None:
    """Raise UserError when a tracker is switched on and not installed. Imports nothing, so it is fast."""
    for name in _switched_on(log):
        _require(name)


def _require(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        message = f'log.{name}=true, but {name} is not installed; pip install "ulorl[{name}]"'
        raise UserError(message, code=ErrorCode.TRACKER_UNAVAILABLE, key=f"log.{name}")


def _switched_on(log: LogConfig) -> list[str]:
    return [name for name in _KINDS if getattr(log, name)]


def _opened(name: str, run_dir: Path, config: Config, warn: Warn) -> GuardedTracker:
    _require(name)
    kind, tracked = _KINDS[name], load_tracked(run_dir, name)
    try:
        tracker = kind.open(run_dir, config, tracked.id)
    except Exception as error:
        why = without_secrets(one_line(error))
        raise UserError(
            f"log.{name}=true: {kind.title} did not start ({why}); {kind.fix}, or set log.{name}=false",
            code=ErrorCode.TRACKER_UNAVAILABLE,
            key=f"log.{name}",
        ) from error
    if tracker.id != tracked.id:
        tracked = Tracked(tracker.id)
        save_tracked(run_dir, name, tracked)
    on_step = partial(_save_step, run_dir, name, tracker.id)
    return GuardedTracker(kind.title, tracker, warn, tracked.step, on_step)


def _save_step(run_dir: Path, name: str, id: str, step: int) -> None:
    save_tracked(run_dir, name, Tracked(id, step))
