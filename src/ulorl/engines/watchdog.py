"""A thread that watches calls into an engine, because a call that hangs cannot watch itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Watchdog:
    """Calls `on_hang(seconds)` when a call made under `watching()` shows no sign of life for `deadline` seconds.

    sign: changes as long as the call gets on. ended: whether what the call waits for has ended meanwhile, in which case
    `on_hang` is called at once. After `on_hang` the clock starts anew. Everything is looked at once a second, or four
    times a deadline when that is shorter. deadline 0 never expires.
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
        self._calls += 1
        self._inside = True
        try:
            yield
        finally:
            self._inside = False

    @contextmanager
    def patient(self, seconds: float) -> Iterator[None]:
        """At least so many seconds, for a part of a call."""
        self._least = seconds
        try:
            yield
        finally:
            self._least = 0.0
            self._calls += 1  # the clock starts anew

    def close(self) -> None:
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
