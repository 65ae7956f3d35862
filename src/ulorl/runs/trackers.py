"""Trackers, which show the metrics of a run elsewhere: TensorBoard, W&B and trackio."""

from __future__ import annotations

import importlib
import importlib.util
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ulorl.common import atomic_files
from ulorl.config.training_config import LogConfig
from ulorl.config.tree import Config
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError


class Tracker(Protocol):
    """Receives the metrics of each step: finite numbers by name, without those that do not exist."""

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Record the metrics of one step."""
        ...

    def close(self) -> None:
        """Flush and end."""
        ...


class TensorBoard:
    """Writes run_dir/tensorboard. purge_after: hide what an earlier attempt of the run wrote after that step."""

    def __init__(self, run_dir: Path, purge_after: int | None = None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(run_dir / "tensorboard"))
        if purge_after is not None:
            start = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=time.time(), step=purge_after + 1, session_log=start))

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Write the metrics of one step, and flush."""
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class Wandb:
    """One W&B run for the folder, which a resumed run continues. `step` is the x axis of every chart, so that steps
    repeated after a resume are accepted. WANDB_MODE=offline needs no key. Raises UserError when W&B does not start."""

    def __init__(self, run_dir: Path, config: Config) -> None:
        wandb = _imported("wandb")
        id_file = run_dir / "wandb_id"
        if not id_file.exists():
            atomic_files.write_text(id_file, os.urandom(4).hex())
        try:
            self._run = wandb.init(
                project=config.log.project,
                name=run_dir.resolve().name,
                id=id_file.read_text(encoding="utf-8").strip(),
                resume="allow",
                dir=str(run_dir),
                config=config.model_dump(mode="json"),
            )
        except wandb.Error as error:
            message = f"log.wandb=true: W&B did not start ({error}); log in or set WANDB_MODE=offline"
            raise UserError(message, code=ErrorCode.TRACKER_UNAVAILABLE, key="log.wandb") from error
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Log the metrics of one step."""
        self._run.log({"step": step, **metrics})

    def close(self) -> None:
        """Finish the W&B run."""
        self._run.finish()


class Trackio:
    """One trackio run with the name of the folder. Raises UserError when trackio cannot be imported."""

    def __init__(self, run_dir: Path, config: Config) -> None:
        self._trackio = _imported("trackio")
        self._trackio.init(
            project=config.log.project,
            name=run_dir.resolve().name,
            config=config.model_dump(mode="json"),
            resume="allow",
        )

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Log the metrics of one step."""
        self._trackio.log(dict(metrics), step=step)

    def close(self) -> None:
        """Finish the trackio run."""
        self._trackio.finish()


def open_trackers(run_dir: Path, config: Config, purge_after: int | None = None) -> list[Tracker]:
    """Open TensorBoard, and the trackers that `config.log` switches on."""
    trackers: list[Tracker] = [TensorBoard(run_dir, purge_after)]
    if config.log.wandb:
        trackers.append(Wandb(run_dir, config))
    if config.log.trackio:
        trackers.append(Trackio(run_dir, config))
    return trackers


def require_trackers(log: LogConfig) -> None:
    """Raise UserError when a tracker is switched on and not installed. Imports nothing, so it is fast."""
    for name in ("wandb", "trackio"):
        if getattr(log, name) and importlib.util.find_spec(name) is None:
            message = f'log.{name}=true, but {name} is not installed; pip install "ulorl[{name}]"'
            raise UserError(message, code=ErrorCode.TRACKER_UNAVAILABLE, key=f"log.{name}")


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        message = f'log.{name}=true, but it cannot be imported ({error}); pip install "ulorl[{name}]"'
        raise UserError(message, code=ErrorCode.TRACKER_UNAVAILABLE, key=f"log.{name}") from error
