"""An engine that survives faults of the engine inside it: it checks every segment, and decodes again what a fault lost.

A fault is a call that raises, hangs or returns a segment that its request did not ask for. Nothing is lost or
duplicated, and because draws depend on (seed, position) only, a retried request draws the same tokens. The first fault
in a row aborts the pending requests and adds them again; the next one replaces the engine by a new one, which loads the
weights that the old one was given last; after `max_faults` faults without a segment between them the run stops. An
engine that hangs in its own process is killed, and its call then raises. One that hangs in this process cannot be
stopped from within it: the process exits with `HUNG`, and the run can be resumed.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from ulorl.engines.engine import Engine, EngineStats, OwnProcess, StopsSome, empty_segment, require_idle
from ulorl.engines.fault_messages import advice, described, engine_failed, print_to_stderr
from ulorl.engines.segment_checks import PendingRequests, SegmentChecks
from ulorl.engines.watchdog import StallCheck, Watchdog
from ulorl.errors import EngineMismatch
from ulorl.types import Request, Segment

if TYPE_CHECKING:
    import torch

HUNG = 75  # the exit code (EX_TEMPFAIL: try again)
START_SECONDS = 1800.0  # for making a new engine; the deadline of its calls does not apply


class RetryingEngine:
    """`Engine` around another engine, which is replaced by one of `remake` when it stays broken.

    remake: makes an idle engine; None when that is impossible. weights: a handle of the weights of `version`, which can
    be iterated any number of times; None: those that `remake` makes engines with. check: is called with a new engine
    that has loaded its weights and with their version, and raises when they are others. checks: of the segments.
    deadline: seconds without a token or an answer after which a call counts as hanging; 0: never. resume: the command
    that resumes the run, for messages. on_fault: is called with a line of text at every fault, as it happens.

    Every call raises UserError after `max_faults` faults in a row.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        remake: Callable[[], Engine] | None,
        checks: SegmentChecks,
        weights: Iterable[tuple[str, torch.Tensor]] | None = None,
        version: int = 0,
        check: Callable[[Engine, int], None] = lambda *_: None,
        max_faults: int = 3,
        deadline: float = 0,
        resume: str = "",
        on_fault: Callable[[str], None] = print_to_stderr,
    ) -> None:
        self.version = version
        self._engine: Engine | None = engine  # None while it is replaced
        self._weights = weights  # given last
        self._remake, self._check, self._on_fault = remake, check, on_fault
        self._max_faults, self._resume = max_faults, resume
        self._requests = PendingRequests(checks)
        self._past = EngineStats()  # faults, and the work of engines that were replaced
        self._in_row = 0  # faults since the last segment
        self._broken = False  # to be replaced before it is used again
        self._killed = ""  # why the engine's process was killed
        self._stall = StallCheck(deadline)
        self._watchdog = Watchdog(deadline, sign=self._tokens, ended=self._died, on_hang=self._hung)

    @property
    def stats(self) -> EngineStats:
        """The work of this engine and of those that it replaced."""
        return self._past.plus(self._engine.stats) if self._engine else self._past

    @property
    def pending(self) -> int:
        """The number of requests added and not yet returned as a segment."""
        return len(self._requests)

    def add(self, request: Request) -> None:
        """Queue one request. Raises ValueError when it does not fit the engine's context length, or when its sample is
        pending already."""
        self._requests.require_new(request)
        fault = ""
        try:
            with self._watchdog.watching():
                self._usable().add(request)
        except Exception as error:
            if isinstance(error, ValueError) and not self._broken:  # the caller's error
                raise
            fault = self._described(error)
        self._requests.add(request)
        self._stall.restart(self._tokens())
        if fault:
            self._recover(fault)

    def step(self) -> list[Segment]:
        """Decode a little and return the segments that ended; at a fault, those that were correct before it."""
        correct: list[Segment] = []
        fault = ""
        try:
            self._collect(correct)
        except Exception as error:
            fault = self._described(error)
        if correct:
            self._in_row = 0
        if fault:
            self._recover(fault)
        return correct

    def _collect(self, correct: list[Segment]) -> None:
        """Add the segments of one step to `correct`. A separate frame: a local variable would keep an engine alive that
        is to be replaced."""
        with self._watchdog.watching():
            engine = self._usable()
            returned = engine.step()
        for segment in self._requests.take_all(returned, self.version):
            correct.append(segment)
        self._requests.check_number(engine.pending)
        self._stall.check(self._tokens(), waiting=len(self._requests) > 0)

    def abort(self) -> list[Segment]:
        """Stop every pending request and return the partial segments; those that a fault loses are empty."""
        requests, partial = list(self._requests), dict[int, Segment]()
        try:
            with self._watchdog.watching():
                returned = self._engine.abort() if self._engine and not self._broken else []
            for segment in self._requests.take_all(returned, self.version, aborted=True):
                partial[segment.sample_id] = segment
        except Exception as error:
            self._broken = True
            self._count(self._described(error))
        self._requests.clear()
        return [partial.get(request.sample_id) or empty_segment(request) for request in requests]

    def abort_some(self, sample_ids: Collection[int]) -> list[Segment]:
        """Stop the requests of these samples and return the partial segments. A fault, and an engine that cannot stop
        some requests, leave the others of them: they are decoded to their end."""
        stopped: list[Segment] = []
        fault = ""
        try:
            with self._watchdog.watching():
                engine = self._usable()
                returned = engine.abort_some(sample_ids) if isinstance(engine, StopsSome) else []
            for segment in self._requests.take_all(returned, self.version, aborted=True):
                stopped.append(segment)
            self._requests.check_number(engine.pending)
        except Exception as error:
            fault = self._described(error)
        if fault:
            self._recover(fault)
        return stopped

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Load new weights, which are kept until the next ones come: a handle that can be iterated any number of times.
        When that fails, the engine is replaced by one that loads them."""
        require_idle(self, "load_weights")
        self._weights, self.version = weights, version
        self._idle_call(lambda engine: engine.load_weights(weights, version), again=False)

    def sleep(self) -> None:
        """Release memory until the next `add` or `load_weights`."""
        require_idle(self, "sleep")
        self._idle_call(lambda engine: engine.sleep(), again=True)

    def close(self) -> None:
        """Release memory, threads and processes. The engine cannot be used afterwards."""
        self._watchdog.close()
        if self._engine:
            self._engine.close()

    def _idle_call(self, call: Callable[[Engine], None], *, again: bool) -> None:
        """Call an idle engine. Raises what the call raises when no new engine can be made."""
        try:
            with self._watchdog.watching():
                call(self._usable())
            return
        except Exception as error:
            if self._remake is None:
                raise
            fault = self._described(error)
        self._broken = True
        self._recover(fault)
        if again:
            self._idle_call(call, again=True)

    def _recover(self, fault: str) -> None:
        """Add everything pending again, to this engine or a new one. Raises UserError after too many faults.

        Called outside of `except`: a traceback would keep the memory of the old engine from the new one.
        """
        while fault:
            self._count(fault)
            if self._in_row >= self._max_faults:
                raise engine_failed("the engine", self._in_row, fault, self._resume)
            try:
                with self._watchdog.watching():
                    self._add_again()
                fault = ""
            except EngineMismatch:
                raise
            except Exception as error:
                fault = self._described(error)

    def _add_again(self) -> None:
        if self._in_row > 1 or self._killed:
            self._broken = True
        if self._engine and (self._remake is None or not self._broken):
            self._engine.abort()  # partial segments are dropped: the same tokens will be drawn again
            self._broken = False
        engine = self._usable()
        if engine.pending:
            raise ValueError(f"{engine.pending} requests pending after all were stopped")
        for request in self._requests:
            engine.add(request)
        self._past.retried += len(self._requests)

    def _usable(self) -> Engine:
        """Return the engine, replaced by a new one where necessary."""
        if (self._broken and self._remake) or self._engine is None:
            assert self._remake is not None
            self._past, old, self._engine = self.stats, self._engine, None
            with suppress(Exception):  # a broken engine may fail to close
                if old:
                    old.close()
            del old  # its memory is needed
            with self._watchdog.patient(START_SECONDS):
                self._engine, self._killed = self._made(self._remake()), ""
        self._broken = False
        return self._engine

    def _made(self, engine: Engine) -> Engine:
        """Load the weights into a new engine, check it and return it."""
        try:
            if self._weights is not None:
                engine.load_weights(self._weights, self.version)
            self._check(engine, self.version)
        except BaseException:
            with suppress(Exception):  # the first error is the one to report
                engine.close()
            raise
        return engine

    def _count(self, fault: str) -> None:
        self._in_row += 1
        self._past.faults += 1
        self._on_fault(f"engine: {fault}; {len(self._requests)} requests had not come back")

    def _described(self, error: Exception) -> str:
        """Return in one line what went wrong, where, and why the engine's process was killed."""
        return f"{self._killed}; {described(error)}" if self._killed else described(error)

    def _tokens(self) -> int:
        engine = self._engine  # another thread may set it to None
        now = engine.stats if engine else EngineStats()
        return now.decode_tokens + now.prefill_tokens

    def _died(self) -> bool:
        engine = self._engine  # another thread may set it to None
        return isinstance(engine, OwnProcess) and not self._killed and engine.died()

    def _hung(self, seconds: float) -> None:
        """In the thread of the watchdog: make the call that hangs raise, or end this process."""
        if isinstance(engine := self._engine, OwnProcess) and not self._killed:
            why = "its process died" if engine.died() else f"killed after {seconds:.0f} seconds without a sign of life"
            self._killed = why
            if engine.kill():
                return
        faulthandler.dump_traceback(file=2)
        for child in multiprocessing.active_children():  # of an engine, which would outlive this process
            child.kill()
        message = (
            f"error: the engine hangs: no token in {seconds:.0f} seconds (engine.deadline). {advice(self._resume)}\n"
        )
        os.write(2, message.encode())
        os._exit(HUNG)
