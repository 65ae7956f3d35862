"""A pool of daemon threads, whose unfinished work keeps no process alive."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Lock, Thread


class DaemonPool:
    """Runs jobs in at most `size` threads, which start when there is work and end when there is none.

    The standard library's pool would keep an interrupted process alive until its last request has timed out.
    """

    def __init__(self, size: int) -> None:
        self._size, self._threads = size, 0
        self._jobs: deque[Callable[[], None]] = deque()
        self._lock = Lock()

    def start(self, job: Callable[[], None]) -> None:
        """Run a job as soon as a thread is free. It must not raise."""
        with self._lock:
            self._jobs.append(job)
            more = self._threads < self._size
            self._threads += more
        if more:
            Thread(target=self._work, daemon=True).start()

    def drop(self) -> None:
        """Forget the jobs that have not started."""
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
