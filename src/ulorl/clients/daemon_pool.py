"""A pool of daemon threads, whose unfinished work keeps no process alive."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock, Thread
from typing import Any, TypeVar

_T = TypeVar("_T")


class DaemonPool:
    """Runs jobs in at most `size` threads, which start when there is work and end when there is none.

    The standard library's pool would keep an interrupted process alive until its last request has timed out.
    """

    def __init__(self, size: int) -> None:
        self._size, self._threads = size, 0
        self._jobs: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._lock = Lock()

    def submit(self, job: Callable[[], _T]) -> Future[_T]:
        """Run a job as soon as a thread is free, in the order of these calls. The future has what it returns or
        raises."""
        future = Future[_T]()
        with self._lock:
            self._jobs.append((future, job))
            more = self._threads < self._size
            self._threads += more
        if more:
            Thread(target=self._work, daemon=True).start()
        return future

    def drop(self) -> None:
        """Forget the jobs that have not started: their futures are cancelled."""
        with self._lock:
            dropped = [future for future, _ in self._jobs]
            self._jobs.clear()
        for future in dropped:
            future.cancel()
            future.set_running_or_notify_cancel()  # wakes who waits for it

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    self._threads -= 1
                    return
                future, job = self._jobs.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = job()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            del future, job  # what they hold may end with its last reader
