"""An `EngineWorker` around an engine in this process, which a thread drives.

The same class serves inside an actor: the actor passes its calls on and waits for the futures.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from ulorl.engines.engine import Engine, OwnProcess, StopsSome
from ulorl.engines.worker import REPORT_SECONDS, Progress
from ulorl.types import Request, Segment

if TYPE_CHECKING:
    import torch

_Call = tuple[Future[None], Callable[[Engine], None]]


class ThreadWorker:
    """`EngineWorker` that owns `engine`: only its thread calls the engine from now on, apart from `died` and `kill`.

    A thread cannot be killed: after `kill`, the thread of an engine that hangs in this process remains, and keeps the
    engine's memory, until the engine's call returns. The engine's own process, where it has one, is killed.

    report_seconds: between reports while no segment ends.
    """

    def __init__(self, engine: Engine, *, report_seconds: float = REPORT_SECONDS) -> None:
        self._engine = engine
        self._report_seconds = report_seconds
        self._pending = 0  # requests that have not come back; used by the thread only
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()  # None: look whether the worker was killed
        self._lock = threading.Lock()  # guards the fields below
        self._ended: list[Segment] = []  # not collected yet
        self._collector: Future[Progress] | None = None
        self._asked = 0.0  # when the collector came
        self._error: BaseException | None = None  # after which every call fails
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine-worker", daemon=True)
        self._thread.start()

    def decode(self, requests: Sequence[Request]) -> Future[None]:
        """Queue requests. The future fails with ValueError when one does not fit the engine."""

        def add(engine: Engine) -> None:
            for request in requests:
                engine.add(request)
                self._pending += 1

        return self._call(add)

    def collect(self) -> Future[Progress]:
        """Return the segments that ended since the last report, as soon as there is one, as `EngineWorker` says."""
        future: Future[Progress] = Future()
        with self._lock:
            if self._error:
                future.set_exception(self._error)
                return future
            self._collector, self._asked = future, time.monotonic()
        self._report(only_segments=True)
        return future

    def abort(self) -> Future[None]:
        """Stop every pending request; `collect` returns the partial segments."""
        return self._call(lambda engine: self._put(engine.abort()))

    def abort_some(self, sample_ids: Collection[int]) -> Future[None]:
        """Stop the requests of these samples, where the engine can; `collect` returns the partial segments."""
        return self._call(
            lambda engine: self._put(engine.abort_some(sample_ids) if isinstance(engine, StopsSome) else [])
        )

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> Future[None]:
        """Load weights in the worker's thread. Fails with RuntimeError while requests are pending."""
        return self._call(lambda engine: engine.load_weights(weights, version))

    def sleep(self) -> Future[None]:
        """Release memory until the next `decode` or `load_weights`."""
        return self._call(lambda engine: engine.sleep())

    def close(self) -> Future[None]:
        """Release memory and processes, and end the thread."""

        def close(engine: Engine) -> None:
            self._closed = True
            engine.close()

        return self._call(close)

    def died(self) -> bool:
        """Return whether the engine's process, or the thread, has ended without `close`."""
        own_process = isinstance(self._engine, OwnProcess) and self._engine.died()
        return not self._closed and (own_process or not self._thread.is_alive())

    def kill(self) -> None:
        """End the engine's process, where it has one, and let the thread end with its present call."""
        self._fail(RuntimeError("the worker was killed"))
        self._calls.put(None)
        if isinstance(self._engine, OwnProcess):
            self._engine.kill()

    def _call(self, call: Callable[[Engine], None]) -> Future[None]:
        future: Future[None] = Future()
        with self._lock:
            if self._error:
                future.set_exception(self._error)
            else:
                self._calls.put((future, call))
        return future

    def _run(self) -> None:
        """In the thread: make the calls in their order, and decode whenever something is pending."""
        try:
            while not self._closed and not self._error:
                while not self._closed and (not self._engine.pending or not self._calls.empty()):
                    self._make(self._calls.get())
                    if self._error:
                        return
                if not self._closed:
                    self._put(self._engine.step())
        except BaseException as error:
            self._fail(error)
        finally:
            self._fail(RuntimeError("the worker is closed"))
            if not self._closed:
                with suppress(Exception):  # a broken engine may fail to close
                    self._engine.close()

    def _make(self, called: _Call | None) -> None:
        if called is None:
            return
        future, call = called
        try:
            call(self._engine)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(None)

    def _put(self, segments: list[Segment]) -> None:
        self._pending -= len(segments)
        if self._pending != self._engine.pending:  # the engine lost one, or returned one twice
            raise ValueError(f"{self._engine.pending} requests are pending, {self._pending} have not come back")
        with self._lock:
            self._ended += segments
        self._report(only_segments=False)

    def _report(self, *, only_segments: bool) -> None:
        """Answer the collector when there is a segment, or when it waits for long."""
        with self._lock:
            late = not only_segments and time.monotonic() - self._asked > self._report_seconds
            if self._collector is None or not (self._ended or late):
                return
            collector, self._collector = self._collector, None
            progress = Progress(tuple(self._ended), replace(self._engine.stats))
            self._ended = []
        collector.set_result(progress)  # outside the lock: its callbacks may call this worker

    def _fail(self, error: BaseException) -> None:
        """Let everything that waits, and every later call, fail with the first error."""
        with self._lock:
            self._error = self._error or error
            collector, self._collector = self._collector, None
            calls = []
            with suppress(Empty):
                while True:
                    calls.append(self._calls.get_nowait())
        for future in (collector, *(called[0] for called in calls if called)):
            if future:
                future.set_exception(error)
