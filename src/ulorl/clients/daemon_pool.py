"""Work in daemon threads, so many at once: a thread pool whose unfinished work keeps no process alive."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Lock, Thread


class Background:
    """Threads start when there is work and end when there is none. The standard library's pool would keep an
    interrupted process alive until its last request has timed out."""

    def __init__(self, most: int) -> None:
        self._most, self._threads = most, 0
        self._jobs: deque[Callable[[], None]] = deque()
        self._lock = Lock()

    def start(self, job: Callable[[], None]) -> None:
        """Do it when a thread is free. It must not raise."""
        with self._lock:
            self._jobs.append(job)
            more = self._threads < self._most
            self._threads += more
        if more:
            Thread(target=self._work, daemon=True).start()

    def drop(self) -> None:
        """Forget what has not begun."""
        with self._lock:
            self._jobs.clear()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    self._threads -= 1
                    return
                job = self._jobs.popleft()
            job()
