"""An engine worker in the caller's thread that decodes when it is told to: for the controller's benchmark."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
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
    """`EngineWorker` whose outputs are one token, many times, and then EOS.

    length: the output tokens of a sample, by its id. `seconds` counts the CPU time of decoding, which is no work of the
    controller.
    """

    def __init__(self, token: int, eos_id: int, length: Callable[[int], int], version: int = 0) -> None:
        self.seconds = 0.0
        self._token, self._eos_id, self._length, self._version = token, eos_id, length, version
        self._stats = EngineStats()
        self._active: list[tuple[Request, int]] = []  # with the output tokens that were decoded
        self._ended: list[Segment] = []
        self._collector: Future[Progress] | None = None

    def tick(self, tokens: int) -> None:
        """Decode `tokens` tokens of every request, and answer the collector."""
        started = time.process_time()
        active = []
        for request, drawn in self._active:
            left = self._length(request.sample_id) - request.output_length
            now = min(drawn + tokens, left, request.max_new_tokens)
            self._stats.decode_tokens += now - drawn
            if now == left:
                self._ended.append(self._segment(request, now, Finish.EOS))
            elif now == request.max_new_tokens:
                self._ended.append(self._segment(request, now, Finish.LENGTH))
            else:
                active.append((request, now))
        self._active = active
        self.seconds += time.process_time() - started
        self._report()

    def decode(self, requests: Sequence[Request]) -> Future[None]:
        """Take requests."""
        self._active += [(request, 0) for request in requests]
        return _answer()

    def collect(self) -> Future[Progress]:
        """Return the segments that ended since the last report, as soon as there is one."""
        self._collector = Future()
        collector = self._collector
        self._report()
        return collector

    def abort(self) -> Future[None]:
        """Stop all requests."""
        started = time.process_time()
        self._ended += [self._segment(request, drawn, Finish.ABORT) for request, drawn in self._active]
        self._active = []
        self.seconds += time.process_time() - started
        self._report()
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

    def _segment(self, request: Request, drawn: int, finish: Finish) -> Segment:
        tokens = np.full(drawn, self._token, np.int32)
        if finish is Finish.EOS:
            tokens[-1] = self._eos_id
        versions = np.full(drawn, self._version, np.int32)
        return Segment(request.sample_id, tokens, np.full(drawn, -1.0, np.float32), versions, finish)


def _answer() -> Future[None]:
    future: Future[None] = Future()
    future.set_result(None)
    return future
