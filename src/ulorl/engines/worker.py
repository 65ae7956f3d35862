"""The interface of an engine that decodes by itself, in a thread or another process: one member of an `EngineFleet`.

No call waits: each returns a future, so that a fleet can call many workers at once and can give up one that hangs. What
crosses the interface is plain data that can be pickled, in few messages: batches of requests to the worker, batches of
segments back. Weights do not cross it: a worker iterates the handle that `load_weights` gives it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ulorl.engines.engine import EngineStats
from ulorl.types import Request, Segment

if TYPE_CHECKING:
    import torch

REPORT_SECONDS = 1.0  # between the reports of a worker that decodes and has no segment to return


@dataclass(frozen=True)
class Progress:
    """The report of a worker: what ended since its last report, and all of its work so far."""

    segments: tuple[Segment, ...]
    stats: EngineStats  # a copy


class EngineWorker(Protocol):
    """An engine that decodes by itself what it is given.

    The calls take effect in the order in which they are made. After a call has failed, the worker is of no more use: a
    fleet kills it. After `kill`, a future may fail or remain open; nobody waits for it.
    """

    def decode(self, requests: Sequence[Request]) -> Future[None]:
        """Queue requests. The future fails with ValueError when one does not fit the engine."""
        ...

    def collect(self) -> Future[Progress]:
        """Return the segments that ended since the last report, as soon as there is one.

        While the engine decodes and no segment ends, the future ends without segments after about `REPORT_SECONDS`,
        which shows that tokens are drawn. While nothing is pending, it remains open. It fails when the engine raises or
        its process dies. One call at a time. Every segment is returned by this call and by no other.
        """
        ...

    def abort(self) -> Future[None]:
        """Stop every pending request. `collect` returns their partial segments (`Finish.ABORT`), empty ones too."""
        ...

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> Future[None]:
        """Load weights, given by parameter name.

        weights: a handle that can be pickled and iterated more than once; the worker iterates it on its own side. A
        fleet calls all of its workers at the same time, as a broadcast needs it; it calls a worker that replaces
        another one alone. Fails with RuntimeError while requests are pending.
        """
        ...

    def sleep(self) -> Future[None]:
        """Release memory until the next `decode` or `load_weights`. Fails with RuntimeError while requests are
        pending."""
        ...

    def close(self) -> Future[None]:
        """Release memory and processes. The worker cannot be used afterwards."""
        ...

    def died(self) -> bool:
        """Return whether the worker's process has ended without `close`. Takes no time: a fleet asks often."""
        ...

    def kill(self) -> None:
        """End the worker at once, whatever it is doing, without waiting for it. May be called twice."""
        ...
