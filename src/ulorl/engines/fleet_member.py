"""One place of an engine fleet: the worker in it, what the worker was asked, and its faults."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from math import inf

from ulorl.engines.engine import EngineStats
from ulorl.engines.segment_checks import PendingRequests
from ulorl.engines.watchdog import StallCheck
from ulorl.engines.worker import EngineWorker

START_SECONDS = 2400.0  # for making a worker: longer than a worker itself waits for its process


@dataclass(frozen=True)
class Occupancy:
    """What one place of a fleet has done, all of its workers together."""

    tokens: int  # decoded
    idle_seconds: float  # without a request while the fleet had some
    faults: int


@dataclass(eq=False)
class FleetMember:
    """A place of a fleet and the worker in it."""

    index: int
    requests: PendingRequests  # of the worker
    stall: StallCheck
    worker: EngineWorker | None  # None while a new one is made
    ready: bool = True  # the worker has the weights of the fleet
    incarnation: int = 0  # of the worker
    calls: int = 0  # that the worker has not answered, apart from `decode` and `collect`
    stats: EngineStats = field(default_factory=EngineStats)  # of the worker, as last reported
    begun: float = (
        inf  # when the making of a new worker began, on the clock of `time.monotonic`; inf: none is being made
    )
    attempts: int = 0  # workers made since one in this place returned a segment
    in_row: int = 0  # faults without a segment of the fleet between them
    last_fault: int = -1  # the number of segments that the fleet had returned at the last fault
    occupancy: Occupancy = Occupancy(0, 0.0, 0)

    @property
    def progress(self) -> int:
        """The tokens that the worker has decoded and prefilled."""
        return self.stats.decode_tokens + self.stats.prefill_tokens

    def stalled(self, now: float) -> str:
        """Return why the worker is to be replaced, "" for one that is well."""
        if self.worker is None:
            return f"no new worker in {START_SECONDS:g} seconds" if now - self.begun > START_SECONDS else ""
        try:
            self.stall.check(self.progress, waiting=len(self.requests) > 0 or self.calls > 0)
        except TimeoutError as error:
            return f"killed: {error}"
        return "its process died" if self.worker.died() else ""

    def next_incarnation(self) -> None:
        """Forget the worker, which is killed, with everything that it was asked."""
        if self.worker:
            with suppress(Exception):  # it may be gone
                self.worker.kill()
        self.worker, self.ready, self.calls, self.begun, self.stats = None, False, 0, inf, EngineStats()
        self.requests.clear()
        self.incarnation += 1
        self.stall.restart(0)
