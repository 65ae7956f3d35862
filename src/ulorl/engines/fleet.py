"""An engine made of several engines, which decode by themselves. `step` only collects the segments that ended.

Requests wait in the fleet, and a worker gets as many as it has free slots (`dealing`), so that a worker that dies loses
little. Draws depend on (seed, position) only, so tokens depend neither on the number of workers nor on who decodes.

A worker that raises, dies, returns what its request did not ask for, or shows no progress for `deadline` seconds is
killed. Its requests are given out again, and a new worker is made in the background, which loads the weights that the
fleet was given last. The futures of a killed worker are dropped by its incarnation, so nothing comes back twice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from ulorl.engines.dealing import Dealer
from ulorl.engines.engine import EngineStats, empty_segment, require_idle
from ulorl.engines.fault_messages import described, engine_failed, print_to_stderr
from ulorl.engines.fleet_member import FleetMember, Occupancy
from ulorl.engines.segment_checks import PendingRequests, SegmentChecks
from ulorl.engines.watchdog import StallCheck
from ulorl.engines.worker import EngineWorker, Progress
from ulorl.errors import EngineMismatch
from ulorl.types import Request, Segment

if TYPE_CHECKING:
    import torch

POLL_SECONDS = 0.05  # the longest wait of `step`, after which the caller looks whether it was cancelled
ABORT_SECONDS = 60.0  # for the partial segments of an aborted worker
CLOSE_SECONDS = 30.0
LONGEST_PAUSE = 60.0  # seconds between attempts to make a worker
_T = TypeVar("_T")


@dataclass(frozen=True)
class FleetSettings:
    """The settings of a fleet.

    slots: the requests that a worker decodes at once. group: samples a problem. max_faults: the run stops after so many
    faults of one worker without a segment of any worker between them. deadline: seconds without a token or an answer
    after which a worker counts as hanging, several times `REPORT_SECONDS`; 0: never. resume: the command that resumes
    the run, for messages. pause: seconds before the second attempt to make a worker, doubled at each further one.
    colocated: whether the learner takes the memory of the workers while the fleet sleeps: then no worker is made.
    """

    slots: int
    group: int
    max_faults: int = 3
    deadline: float = 0
    resume: str = ""
    pause: float = 1.0
    colocated: bool = False


_Event = tuple[FleetMember, int, Future[Any], Callable[[FleetMember, Any], None]]


def _decode(worker: EngineWorker, requests: Sequence[Request]) -> Future[None]:
    return worker.decode(requests)


def _ignore(_: FleetMember, __: None) -> None:
    pass


class EngineFleet:
    """`Engine` over workers.

    workers: with the weights of `version`. remake: makes a new worker for a place, by index, with those same weights;
    it is called in a thread. checks: of the segments. on_fault: is called with a line of text at every fault.

    Weights are kept until the next ones come: they must be a handle that can be iterated any number of times, by
    several threads. Every call raises UserError after `settings.max_faults` faults.
    """

    def __init__(
        self,
        workers: Sequence[EngineWorker],
        *,
        remake: Callable[[int], EngineWorker],
        checks: SegmentChecks,
        settings: FleetSettings,
        version: int = 0,
        on_fault: Callable[[str], None] = print_to_stderr,
    ) -> None:
        self.version = version
        self.stats = EngineStats()
        self.given: dict[int, tuple[int, float]] = {}  # see `ManyEngines`
        self._settings, self._remake, self._on_fault = settings, remake, on_fault
        self._weights: Iterable[tuple[str, torch.Tensor]] | None = None  # None: those that workers are made with
        self._requests: dict[int, Request] = {}  # everything pending, by sample id
        self._dealer: Dealer[Request] = Dealer(len(workers), settings.slots, settings.group)
        self._ended: list[Segment] = []  # to be returned
        self._returned = 0  # segments so far
        self._checked = 0.0  # when the workers were last checked; 0: not since something is pending
        self._asleep = self._stopping = False
        self._closed, self._may_make = threading.Event(), threading.Event()
        self._may_make.set()
        self._events: SimpleQueue[_Event] = SimpleQueue()
        self._members = [
            FleetMember(index, PendingRequests(checks), StallCheck(settings.deadline), worker)
            for index, worker in enumerate(workers)
        ]
        for member in self._members:
            self._collect(member)

    @property
    def pending(self) -> int:
        """The number of requests added and not yet returned as a segment."""
        return len(self._requests)

    @property
    def occupancy(self) -> list[Occupancy]:
        """The work of each place of the fleet since the fleet was made."""
        return [member.occupancy for member in self._members]

    def add(self, request: Request) -> None:
        """Queue one request. Raises ValueError when its sample is pending already."""
        if request.sample_id in self._requests:
            raise ValueError(f"sample {request.sample_id} is being decoded already")
        self._requests[request.sample_id] = request
        self._dealer.add(request)
        self._wake()

    def step(self) -> list[Segment]:
        """Give out requests, wait up to `POLL_SECONDS` for segments that end, and return them."""
        if not self._requests:
            return []
        self._deal()
        self._handle_events()
        self._deal()
        if not self._requests:
            self._checked = 0.0
        return self._taken()

    def abort(self) -> list[Segment]:
        """Stop every pending request and return the partial segments; those that a fault loses are empty."""
        requests, self._stopping, until = list(self._requests.values()), True, time.monotonic() + ABORT_SECONDS
        self._dealer.clear()
        for member in self._members:
            if member.worker and len(member.requests):
                self._call(member, lambda worker: worker.abort())
        while any(len(member.requests) for member in self._members):
            self._handle_events()
            if time.monotonic() > until:
                for member in self._members:
                    if len(member.requests):
                        self._fault(member, f"no partial segments in {ABORT_SECONDS:g} seconds")
        self._dealer.clear()  # those of faults
        self._requests.clear()
        self._stopping, self._checked = False, 0.0
        partial = {segment.sample_id: segment for segment in self._taken()}
        return [partial.get(request.sample_id) or empty_segment(request) for request in requests]

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Load new weights into all workers at the same time. One that fails is replaced in the background.

        Raises RuntimeError while requests are pending, TypeError for an iterator, which only one worker could read.
        """
        require_idle(self, "load_weights")
        if iter(weights) is weights:
            raise TypeError("a fleet needs weights that can be iterated several times, not an iterator")
        self._handle_events(block=False)
        self._weights, self.version = weights, version
        self._wake()
        members = [member for member in self._members if member.worker]
        for member in members:
            self._load(member)
        self._await(members)

    def sleep(self) -> None:
        """Release memory until the next `add` or `load_weights`; colocated, wait for workers that are being made, which
        release it too. Raises RuntimeError while requests are pending."""
        require_idle(self, "sleep")
        self.given.clear()
        self._asleep = True  # workers that are being made follow
        if self._settings.colocated:
            self._may_make.clear()
        members = [member for member in self._members if member.ready]
        for member in members:
            self._call(member, lambda worker: worker.sleep())
        self._await(members)
        while self._settings.colocated and any(member.calls or member.begun < inf for member in self._members):
            self._handle_events()
        self._checked = 0.0

    def close(self) -> None:
        """Release memory, threads and processes; kill the workers that do not close in time."""
        self._closed.set()
        self._may_make.set()
        closing: dict[Future[None], FleetMember] = {}
        for member in self._members:
            if member.worker:
                with suppress(Exception):  # the worker is killed below
                    closing[member.worker.close()] = member
        done, _ = wait(closing, CLOSE_SECONDS)
        for future in done:
            if not future.exception():
                closing[future].worker = None
        for member in self._members:
            member.next_incarnation()
        with suppress(Empty):
            while True:
                self._handle(self._events.get_nowait())  # kills workers that were just made

    def _wake(self) -> None:
        self._asleep = False
        self._may_make.set()

    # Requests and segments

    def _deal(self) -> None:
        if not self._dealer.waiting:
            return
        dealt = self._dealer.deal([member.index for member in self._members if member.ready])
        for index, requests in dealt.items():
            member = self._members[index]
            if not len(member.requests):
                member.stall.restart(member.progress)
            for request in requests:
                member.requests.add(request)
                self.given[request.sample_id] = index, time.perf_counter()
            self._ask(member, partial(_decode, requests=requests), _ignore)

    def _collect(self, member: FleetMember) -> None:
        self._ask(member, lambda worker: worker.collect(), self._report)

    def _report(self, member: FleetMember, progress: Progress) -> None:
        """Take the segments of a report, up to the first that is wrong, and ask for the next report."""
        self._collect(member)
        work, member.stats = progress.stats.since(member.stats), progress.stats
        self.stats = self.stats.plus(work)
        member.occupancy = replace(member.occupancy, tokens=member.occupancy.tokens + work.decode_tokens)
        fault = ""
        try:
            for segment in member.requests.take_all(progress.segments, self.version, aborted=self._stopping):
                self._ended.append(segment)
                self._dealer.returned(segment.sample_id)
                del self._requests[segment.sample_id]
                self._returned += 1
                member.attempts = 0
        except Exception as error:  # whatever a broken segment makes of the checks
            fault = described(error)
        if fault:
            self._fault(member, fault)

    def _taken(self) -> list[Segment]:
        taken, self._ended = self._ended, []
        return taken

    # Calls and their answers

    def _ask(
        self, member: FleetMember, call: Callable[[EngineWorker], Future[_T]], then: Callable[[FleetMember, _T], None]
    ) -> None:
        """Call a worker; `then` gets the result when events are handled, unless the worker is replaced before."""
        assert member.worker is not None
        try:
            future = call(member.worker)
        except Exception as error:
            future = Future()
            future.set_exception(error)
        self._watch(member, future, then)

    def _watch(self, member: FleetMember, future: Future[_T], then: Callable[[FleetMember, _T], None]) -> None:
        incarnation = member.incarnation
        future.add_done_callback(lambda done: self._events.put((member, incarnation, done, then)))

    def _call(
        self,
        member: FleetMember,
        call: Callable[[EngineWorker], Future[None]],
        then: Callable[[FleetMember, None], None] = _ignore,
    ) -> None:
        """Make a call that has to be answered within the deadline; see `_await`."""

        def answered(member: FleetMember, result: None) -> None:
            member.calls -= 1
            then(member, result)

        if not len(member.requests):
            member.stall.restart(member.progress)
        member.calls += 1
        self._ask(member, call, answered)

    def _await(self, members: Sequence[FleetMember]) -> None:
        """Wait until each has answered its calls or is replaced."""
        while any(member.calls for member in members):
            self._handle_events()
        self._checked = 0.0

    def _handle_events(self, *, block: bool = True) -> None:
        """Handle what has happened, after a wait of at most `POLL_SECONDS` for the first event."""
        with suppress(Empty):
            event = self._events.get(timeout=POLL_SECONDS) if block else self._events.get_nowait()
            while True:
                self._handle(event)
                event = self._events.get_nowait()
        self._check()

    def _handle(self, event: _Event) -> None:
        member, incarnation, future, then = event
        error = future.exception()
        if incarnation != member.incarnation:  # of a worker that was replaced
            if then == self._made and error is None:
                future.result().kill()
        elif error is None:
            then(member, future.result())
        elif isinstance(error, EngineMismatch):
            raise error
        else:
            self._fault(member, described(error))

    # Faults

    def _check(self) -> None:
        """Replace workers that died or made no progress for too long, and count idle seconds."""
        now = time.monotonic()
        seconds = now - self._checked if self._checked else 0.0
        if self._checked and seconds < POLL_SECONDS:
            return
        caller_was_away = not self._checked or seconds > 20 * POLL_SECONDS  # nobody has looked at the reports
        self._checked = now
        for member in self._members:
            busy = len(member.requests) > 0
            if self._requests and not busy:
                idle = member.occupancy.idle_seconds + seconds
                member.occupancy = replace(member.occupancy, idle_seconds=idle)
                self.stats = replace(self.stats, idle_seconds=self.stats.idle_seconds + seconds)
            if caller_was_away and busy:
                member.stall.restart(member.progress)
            if fault := member.stalled(now):
                self._fault(member, fault)

    def _fault(self, member: FleetMember, fault: str) -> None:
        """Kill a worker, let its requests wait again, and begin to make another one. Raises UserError after too many
        faults."""
        lost = list(member.requests)
        member.next_incarnation()
        for request in lost:
            self._dealer.returned(request.sample_id)
            self._dealer.add(request)
        self.stats = replace(self.stats, faults=self.stats.faults + 1, retried=self.stats.retried + len(lost))
        member.occupancy = replace(member.occupancy, faults=member.occupancy.faults + 1)
        member.in_row = 1 + (member.in_row if member.last_fault == self._returned else 0)
        member.last_fault = self._returned
        self._on_fault(f"engine {member.index}: {fault}; {len(lost)} requests had not come back")
        if member.in_row >= self._settings.max_faults and not self._stopping:
            raise engine_failed(f"engine {member.index}", member.in_row, fault, self._settings.resume)
        self._make(member)

    def _make(self, member: FleetMember) -> None:
        """Begin to make a worker in a thread: at once the first time, after a pause when it fails again, and not before
        a colocated fleet wakes up."""
        member.attempts += 1
        doubled = min(member.attempts - 2, 100)  # more would overflow
        pause = min(LONGEST_PAUSE, self._settings.pause * 2.0**doubled) if member.attempts > 1 else 0.0
        made: Future[EngineWorker] = Future()
        self._watch(member, made, self._made)

        def make() -> None:
            self._closed.wait(pause)
            self._begin_to_make(member)
            if self._closed.is_set():
                return
            try:
                worker = self._remake(member.index)
            except BaseException as error:
                made.set_exception(error)
                return
            made.set_result(worker)
            if self._closed.is_set():
                worker.kill()

        threading.Thread(target=make, name=f"make-engine-{member.index}", daemon=True).start()

    def _begin_to_make(self, member: FleetMember) -> None:
        """In the thread that makes a worker: wait until this is allowed, and say that it begins."""
        while member.begun == inf:
            self._may_make.wait()
            member.begun = time.monotonic()
            if not self._may_make.is_set():  # `sleep` may have seen that none was being made
                member.begun = inf

    def _made(self, member: FleetMember, worker: EngineWorker) -> None:
        """Take a new worker into the fleet: it loads the fleet's weights first."""
        member.worker, member.begun = worker, inf
        member.stall.restart(0)
        self._collect(member)
        if self._weights is None:
            self._enter(member)
        else:
            self._load(member)

    def _load(self, member: FleetMember) -> None:
        member.ready = False
        weights, version = self._weights, self.version
        assert weights is not None

        def loaded(member: FleetMember, _: None) -> None:
            if version == self.version:  # else newer weights are on their way
                self._enter(member)

        self._call(member, lambda worker: worker.load_weights(weights, version), loaded)

    def _enter(self, member: FleetMember) -> None:
        member.ready = True
        if self._asleep:
            self._call(member, lambda worker: worker.sleep())
