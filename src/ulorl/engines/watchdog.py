"""Notices calls into an engine that hang, from a thread, and calls that return without any progress."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class StallCheck:
    """Notices an engine whose calls return while it decodes nothing for longer than `deadline` seconds; 0: never."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self.restart(0)

    def restart(self, tokens: int) -> None:
        """Start the clock at a count of `tokens` decoded and prefilled."""
        self._tokens, self._since = tokens, time.monotonic()

    def check(self, tokens: int, *, waiting: bool) -> None:
        """Raise TimeoutError when the count of tokens is the same for too long while requests are waiting."""
        if tokens != self._tokens or not waiting:
            self.restart(tokens)
        elif self._deadline and time.monotonic() - self._since > self._deadline:
            self.restart(tokens)
            raise TimeoutError(f"no token in {self._deadline:g} seconds (engine.deadline)")


class Watchdog:
    """Calls `on_hang(seconds)` from a thread when a call made under `watching()` shows no sign of life for `deadline`
    seconds.

    sign: returns a value that changes while the call makes progress. ended: returns whether the process that the call
    waits for has ended, in which case `on_hang` is called at once. After `on_hang` the clock restarts. Both are called
    once a second, or four times a deadline when that is shorter. deadline 0 never expires.
    """

    def __init__(
        self,
        deadline: float,
        *,
        sign: Callable[[], object],
        ended: Callable[[], bool],
        on_hang: Callable[[float], None],
    ) -> None:
        self.deadline = deadline
        self._sign, self._ended, self._on_hang = sign, ended, on_hang
        self._calls = 0
        self._inside = False
        self._least = 0.0  # seconds, when a call may take longer than the deadline
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="engine-watchdog", daemon=True)
        self._thread.start()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the call that the block makes."""
        self._calls += 1
        self._inside = True
        try:
            yield
        finally:
            self._inside = False

    @contextmanager
    def patient(self, seconds: float) -> Iterator[None]:
        """Let the block, a part of a call, take at least so many seconds, even with a shorter deadline."""
        self._least = seconds
        try:
            yield
        finally:
            self._least = 0.0
            self._calls += 1  # the clock restarts

    def close(self) -> None:
        """End the thread."""
        self._closed.set()

    def _watch(self) -> None:
        pause = min(1.0, self.deadline / 4) if self.deadline else 1.0
        seen: object = None
        since = 0.0
        while not self._closed.wait(pause):
            now = time.monotonic()
            sign = (self._calls, self._sign()) if self._inside else None
            if sign is None or sign != seen:
                seen, since = sign, now
            silent = now - since
            if sign is not None and (self._ended() or (self.deadline and silent > max(self.deadline, self._least))):
                self._on_hang(silent)
                seen = None
