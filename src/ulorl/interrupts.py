"""Ctrl-C and SIGTERM: the step in progress is finished and saved, then the run stops and says how to go on."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType


class Interrupted(Exception):  # noqa: N818 - it is no error
    """The run was asked to stop; it is saved and can be resumed."""

    def __init__(self, run_dir: Path, step: int, signum: int) -> None:
        super().__init__(f"stopped after step {step}; everything is saved. Go on with: ulorl train --resume {run_dir}")
        self.exit_code = 128 + signum


@contextmanager
def interrupts() -> Iterator[Callable[[], int]]:
    """Turn the first SIGINT or SIGTERM into a wish to stop after this step (0: none yet); the second acts at once."""
    received = 0

    def on_signal(signum: int, _: FrameType | None) -> None:
        nonlocal received
        received = signum
        for which in previous:
            signal.signal(which, previous[which])

    try:
        previous = {which: signal.signal(which, on_signal) for which in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals are the caller's business
        previous = {}
    try:
        yield lambda: received
    finally:
        for which, handler in previous.items():
            signal.signal(which, handler)
