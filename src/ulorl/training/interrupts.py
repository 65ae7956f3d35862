"""Ctrl-C and SIGTERM during a run: the first signal cancels the work in progress, the second ends the process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from ulorl.cancellation import CancelToken
from ulorl.training.checkpoint import resume_command

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):  # noqa: N818 - it is no error
    """A signal stopped the run after `step` steps; it is saved and can be resumed."""

    def __init__(self, run_dir: Path, step: int, signum: int) -> None:
        when = f"after step {step}" if step else "before the first step"
        super().__init__(f"stopped {when}; everything is saved. Resume with: {resume_command(run_dir)}")
        self.step, self.exit_code = step, 128 + signum


class Interrupts:
    """Receives the signals of a run. The first one cancels `cancel`; `received` is its number, 0 before it."""

    def __init__(self) -> None:
        self.cancel = CancelToken()
        self.received = 0

    def signalled(self, signum: int, _: FrameType | None = None) -> None:
        """Handle a signal: the first one cancels the work in progress, the second one ends the process at once."""
        if self.received:
            _leave(signum)
        self.received = signum
        self.cancel.cancel()


@contextmanager
def catching_signals() -> Iterator[Interrupts]:
    """Cancel the token of the yielded `Interrupts` at the first SIGINT or SIGTERM; the second one ends the process at
    once, with its exit code.

    Python calls handlers between two instructions of the main thread, and a backward pass or a write is a single one.
    Therefore a thread counts the signals too.
    """
    caught = Interrupts()
    try:
        previous = {which: signal.signal(which, caught.signalled) for which in SIGNALS}
    except ValueError:  # not in the main thread: the caller handles signals
        yield caught
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    counting = threading.Thread(target=_count, args=(reader,), name="signals", daemon=True)
    counting.start()
    try:
        yield caught
    finally:
        signal.set_wakeup_fd(wakeup)
        for which, handler in previous.items():
            signal.signal(which, handler)
        os.write(writer, b"\0")  # ends the thread
        counting.join()
        os.close(writer)
        os.close(reader)


def _count(reader: int) -> None:
    """Read the numbers of arriving signals, a byte each, up to a 0; the second one in SIGNALS ends the process."""
    seen = 0
    while signum := os.read(reader, 1)[0]:
        seen += signum in SIGNALS
        if seen > 1:
            _leave(signum)


def _leave(signum: int) -> None:
    for child in multiprocessing.active_children():  # vLLM's, which would continue to decode
        child.kill()
    if os.isatty(1):
        os.write(1, b"\x1b[?25h\n")  # progress bars hide the cursor
    os._exit(128 + signum)
