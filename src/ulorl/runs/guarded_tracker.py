"""Keeps a tracker's failures away from the run, and remembers which steps it has."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ulorl.common import atomic_files
from ulorl.common.redaction import without_secrets
from ulorl.errors import one_line
from ulorl.runs.tracker import SampleRow, Tracker

MOST = 3  # failures in a row after which a tracker is left out

Warn = Callable[[str], None]


@dataclass(frozen=True)
class Tracked:
    """Which run a tracker has for a run folder, "" for none, and the last step that it has."""

    id: str = ""
    step: int = -1


def load_tracked(run_dir: Path, name: str) -> Tracked:
    """Return what tracker `name` has of the run."""
    try:
        values = json.loads(_file(run_dir, name).read_text(encoding="utf-8"))
        return Tracked(str(values["id"]), int(values["step"]))
    except (OSError, ValueError, LookupError, TypeError):
        old = run_dir / f"{name}_id"  # of an earlier version
        return Tracked(old.read_text(encoding="utf-8").strip()) if old.is_file() else Tracked()


def save_tracked(run_dir: Path, name: str, tracked: Tracked) -> None:
    """Store what tracker `name` has of the run."""
    atomic_files.write_text(_file(run_dir, name), json.dumps(asdict(tracked)) + "\n")


def _file(run_dir: Path, name: str) -> Path:
    return run_dir / f"tracker_{name}.json"


class _Step(NamedTuple):
    step: int
    metrics: Mapping[str, float | int]
    samples: Sequence[SampleRow]


class GuardedTracker:
    """A tracker that raises nothing.

    A step that it did not take is sent again with the next one; after `MOST` failures in a row nothing is sent any
    more. A step that it has already, from before the run was resumed, is not sent again.

    name: as messages have it. warn: shows a message. last_step: the last step that the tracker has. on_step: called
    with each step that it takes.
    """

    def __init__(
        self, name: str, tracker: Tracker, warn: Warn, last_step: int = -1, on_step: Callable[[int], None] | None = None
    ) -> None:
        self._name, self._tracker, self._warn = name, tracker, warn
        self._last, self._on_step = last_step, on_step
        self._waiting: list[_Step] = []
        self._failures = 0

    def write(self, step: int, metrics: Mapping[str, float | int], samples: Sequence[SampleRow]) -> None:
        """Send one step, after those that wait."""
        if step > self._last and self._failures < MOST:
            self._waiting.append(_Step(step, metrics, samples))
            self._try(self._send, f"did not take step {step}")

    def report(self, path: Path) -> None:
        """Send the report."""
        if self._failures < MOST:
            self._try(partial(self._tracker.report, path), f"did not take {path.name}")

    def close(self, *, failed: bool) -> None:
        """End the tracker's run. failed: whether the run stopped before its last step."""
        self._try(partial(self._tracker.close, failed=failed), "did not close")

    def _send(self) -> None:
        while self._waiting:
            first = self._waiting[0]
            self._tracker.write(*first)
            self._waiting.pop(0)
            if self._on_step:
                self._on_step(first.step)

    def _try(self, action: Callable[[], None], what: str) -> None:
        try:
            action()
        except Exception as error:
            self._failures += 1
            if self._failures == 1:
                goes_on = "the run goes on, and so does metrics.jsonl"
                self._warn(f"{self._name} {what} ({without_secrets(one_line(error))}); {goes_on}")
            elif self._failures == MOST:
                self._warn(f"{self._name} failed {MOST} times in a row: nothing more is sent until the run is resumed")
        else:
            self._failures = 0
