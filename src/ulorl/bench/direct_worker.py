"""An engine worker in the caller's thread, which ends every request at once: for the controller's benchmark."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ulorl.engines.engine import EngineStats
from ulorl.engines.worker import Progress
from ulorl.types import Finish, Request, Segment

if TYPE_CHECKING:
    import torch


class DirectWorker:
    """`EngineWorker` that ends every request in `decode` itself: it returns the whole budget, filled with one token.

    `seconds` counts the CPU time that this takes, which is no work of the controller.
    """

    def __init__(self, token: int, version: int = 0) -> None:
        self.seconds = 0.0
        self._token, self._version = token, version
        self._stats = EngineStats()
        self._ended: list[Segment] = []
        self._collector: Future[Progress] | None = None

    def decode(self, requests: Sequence[Request]) -> Future[None]:
        """Make the segments of all requests, and answer the collector."""
        started = time.process_time()
        for request in requests:
            length = request.max_new_tokens
            self._ended.append(
                Segment(
                    request.sample_id,
                    np.full(length, self._token, np.int32),
                    np.full(length, -1.0, np.float32),
                    np.full(length, self._version, np.int32),
                    Finish.LENGTH,
                )
            )
            self._stats.decode_tokens += length
        self.seconds += time.process_time() - started
        self._report()
        return _answer()

    def collect(self) -> Future[Progress]:
        """Return the segments that were made since the last report, as soon as there is one."""
        self._collector = Future()
        collector = self._collector
        self._report()
        return collector

    def abort(self) -> Future[None]:
        """Do nothing: nothing is ever pending."""
        return _answer()

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> Future[None]:
        """Set the version; the weights are not used."""
        deque(weights, maxlen=0)
        self._version = version
        return _answer()

    def sleep(self) -> Future[None]:
        """Do nothing."""
        return _answer()

    def close(self) -> Future[None]:
        """Do nothing."""
        return _answer()

    def died(self) -> bool:
        """Return False: there is no process."""
        return False

    def kill(self) -> None:
        """Do nothing."""

    def _report(self) -> None:
        if self._collector and self._ended:
            collector, self._collector = self._collector, None
            ended, self._ended = tuple(self._ended), []
            collector.set_result(Progress(ended, replace(self._stats)))


def _answer() -> Future[None]:
    future: Future[None] = Future()
    future.set_result(None)
    return future
