"""One engine for the requests of many callers, which join the batch that is being decoded."""

from __future__ import annotations

import sys
from collections import deque
from concurrent.futures import Future
from functools import partial
from itertools import count
from threading import Lock

from ulorl.engines.engine import Engine
from ulorl.engines.thread_worker import ThreadWorker
from ulorl.engines.worker import Progress
from ulorl.types import Request, Sampling, Segment, Tokens


class SharedEngine:
    """Decodes whole outputs in a thread of its own, all requests of the moment in one batch.

    It owns `engine` from now on. Any thread may call it.
    """

    def __init__(self, engine: Engine, slots: int = sys.maxsize) -> None:
        """slots: how many requests the engine gets at once; the others wait here."""
        self._worker, self._slots = ThreadWorker(engine), slots
        self._lock = Lock()  # guards the fields below
        self._waiting: dict[int, Future[Segment]] = {}  # of the requests that wait here or in the engine
        self._queue: deque[Request] = deque()
        self._given: set[int] = set()  # requests that the engine has
        self._error: BaseException | None = None
        self._numbers = count()
        self._collect()

    @property
    def error(self) -> BaseException | None:
        """Why the engine takes no more requests, None while it works."""
        return self._error

    def submit(self, prompt: Tokens, max_tokens: int, sampling: Sampling, seed: int) -> Future[Segment]:
        """Return a future of the output to a prompt, at most `max_tokens` tokens. seed: of its draws, 64 bits.

        The future fails with ValueError when the request does not fit the engine, and with the engine's error when it
        stops, or has stopped already. A request whose future is cancelled is not decoded any further, and its slot
        becomes free (`StopsSome`; an engine that cannot stop some requests decodes it to its end).
        """
        future: Future[Segment] = Future()
        with self._lock:
            number = next(self._numbers)
            self._waiting[number] = future
            self._queue.append(Request(number, prompt, max_tokens, sampling, seed))
        future.add_done_callback(partial(self._ended, number))
        self._fill()
        return future

    def close(self) -> None:
        """Stop decoding and release the memory. Requests without an output fail with RuntimeError."""
        self._worker.close().exception()  # waits; an engine that has failed is closed already

    def _fill(self) -> None:
        """Give the engine as many requests as it has free slots for, and drop those that nobody waits for."""
        added = []
        with self._lock:  # also while the engine is given them: a later cancel must come to it after its request
            while self._queue and len(self._given) < self._slots:
                request = self._queue.popleft()
                if self._waiting[request.sample_id].cancelled():
                    del self._waiting[request.sample_id]
                else:
                    self._given.add(request.sample_id)
                    added.append((request.sample_id, self._worker.decode([request])))
        for number, future in added:
            future.add_done_callback(partial(self._added, number))

    def _ended(self, number: int, future: Future[Segment]) -> None:
        """Stop a request that nobody waits for any more."""
        with self._lock:
            if not future.cancelled() or number not in self._given:
                return
            stopped = self._worker.abort_some([number])
        stopped.add_done_callback(self._stopped)

    def _stopped(self, stopped: Future[None]) -> None:
        """An engine that cannot stop a request ends, as one whose step fails: which slots are free is not known."""
        if error := stopped.exception():
            self._fail(error)
            self._worker.close()

    def _added(self, number: int, added: Future[None]) -> None:
        if error := added.exception():
            with self._lock:
                future = self._waiting.pop(number, None)
                self._given.discard(number)
            _end(future, self._error or error)
            self._fill()

    def _collect(self) -> None:
        self._worker.collect().add_done_callback(self._collected)

    def _collected(self, reported: Future[Progress]) -> None:
        """In the engine's thread: hand out what ended."""
        if error := reported.exception():
            self._fail(error)
            return
        for segment in reported.result().segments:
            with self._lock:
                ended = self._waiting.pop(segment.sample_id, None)
                self._given.discard(segment.sample_id)
            _end(ended, segment)
        self._fill()
        self._collect()

    def _fail(self, error: BaseException) -> None:
        """Fail every request with the first error, and keep it."""
        with self._lock:
            self._error = error = self._error or error
            waiting, self._waiting = list(self._waiting.values()), {}
            self._queue.clear()
            self._given = set()  # a later request learns the error from the worker, and must not wait for a slot
        for future in waiting:
            _end(future, error)


def _end(future: Future[Segment] | None, outcome: Segment | BaseException) -> None:
    """Complete a future that nobody has cancelled; None: it has been completed."""
    if future is None or not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
