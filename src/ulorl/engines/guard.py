"""An engine that may fail, behind the same seam: what it returns is checked, and requests that a fault took with it
are given out again. Nothing is lost or duplicated, and as draws depend on (seed, position) only, a retried request
draws the same tokens.

A fault is a call that raises, hangs or brings a segment that its request did not ask for. The first one in a row stops
the requests pending and adds them anew; at the next one the engine is made anew, with the present weights; after
`max_faults` without a segment between them the run stops. An engine that hangs in a process of its own is killed, and
so raises. One that hangs in ours cannot be stopped from within it: the process ends with `HUNG`, to be resumed.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from ulorl.engines.engine import Engine, EngineStats, OwnProcess, check_segment, empty_segment, require_idle
from ulorl.engines.watchdog import Watchdog
from ulorl.errors import EngineMismatch, UserError
from ulorl.types import Finish, Request, Sampling, Segment

if TYPE_CHECKING:
    import torch

HUNG = 75  # the exit code (EX_TEMPFAIL: try again)
START_SECONDS = 1800.0  # for making an engine anew, whatever the deadline for its calls


class GuardedEngine:
    """`base.Engine` around `engine`, made anew by `remake`.

    remake: an engine with the present weights, idle; None when there is no way to make one. eos_ids, vocabulary: of the
    model, to check segments by. sampling: the one whose log-probs are trained on; None, in an evaluation, when no one's
    are. deadline: seconds without a token or an answer, 0 for ever. resume: the command that goes on with the run.
    `tell` hears of every fault as it happens.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        remake: Callable[[], Engine] | None,
        eos_ids: Sequence[int],
        vocabulary: int,
        sampling: Sampling | None,
        version: int = 0,
        max_faults: int = 3,
        deadline: float = 0,
        resume: str = "",
    ) -> None:
        self.version = version
        self.tell: Callable[[str], None] = _to_stderr
        self._engine: Engine | None = engine  # None while it is made anew
        self._remake = remake
        self._eos_ids, self._vocabulary = np.array(sorted(set(eos_ids)), dtype=np.int32), vocabulary
        self._sampling, self._max_faults, self._resume = sampling, max_faults, resume
        self._requests: dict[int, Request] = {}  # given out and not yet returned, by sample id
        self._past = EngineStats()  # faults, and the work of engines that are no more
        self._in_row = 0  # faults since the last segment
        self._broken = False  # to be made anew before it is used again
        self._killed = ""  # why the engine's process was
        self._moved = (0, 0.0)  # tokens decoded and prefilled, and when they last changed
        self._watchdog = Watchdog(deadline, sign=self._tokens, ended=self._died, on_hang=self._hung)

    @property
    def stats(self) -> EngineStats:
        return self._past.plus(self._engine.stats) if self._engine else self._past

    @property
    def pending(self) -> int:
        return len(self._requests)

    def add(self, request: Request) -> None:
        """Queue one request. Raises ValueError when it cannot fit the engine's context length, or when its sample is
        being decoded already; UserError, as every other call, after too many faults in a row."""
        if request.sample_id in self._requests:
            raise ValueError(f"sample {request.sample_id} is being decoded already")
        fault = ""
        try:
            with self._watchdog.watching():
                self._usable().add(request)
        except Exception as error:
            if isinstance(error, ValueError) and not self._broken:  # the request's fault
                raise
            fault = self._told(error)
        self._requests[request.sample_id] = request
        self._moved = (self._tokens(), time.monotonic())
        if fault:
            self._recover(fault)

    def step(self) -> list[Segment]:
        """As the engine's; with a fault, what came whole before it."""
        whole: list[Segment] = []
        fault = ""
        try:
            self._collect(whole)
        except Exception as error:
            fault = self._told(error)
        if whole:
            self._in_row = 0
        if fault:
            self._recover(fault)
        return whole

    def _collect(self, whole: list[Segment]) -> None:
        """One step into `whole`. A frame of its own: nothing may keep an engine that is made anew."""
        with self._watchdog.watching():
            engine = self._usable()
            returned = engine.step()
        for segment in returned:
            self._take(segment)
            whole.append(segment)
        if engine.pending != len(self._requests):
            raise ValueError(f"{engine.pending} requests are pending, {len(self._requests)} have not come back")
        self._check_progress()

    def abort(self) -> list[Segment]:
        """As the engine's; what a fault takes with it comes back empty."""
        requests, self._requests = self._requests, {}
        partial: dict[int, Segment] = {}
        try:
            with self._watchdog.watching():
                returned = self._engine.abort() if self._engine and not self._broken else []
            for segment in returned:
                if segment.sample_id not in requests or segment.sample_id in partial:
                    raise ValueError(f"sample {segment.sample_id} came back, which was not pending")
                self._check(segment, requests[segment.sample_id])
                partial[segment.sample_id] = segment
        except Exception as error:
            self._broken = True
            self._count(self._told(error))
        return [partial.get(id) or empty_segment(request) for id, request in requests.items()]

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """As the engine's; when that fails, the engine is made anew, with the present weights."""
        require_idle(self, "load_weights")
        self.version = version
        self._idle_call(lambda engine: engine.load_weights(weights, version), again=False)

    def sleep(self) -> None:
        """As the engine's."""
        require_idle(self, "sleep")
        self._idle_call(lambda engine: engine.sleep(), again=True)

    def close(self) -> None:
        """As the engine's."""
        self._watchdog.close()
        if self._engine:
            self._engine.close()

    def _idle_call(self, call: Callable[[Engine], None], *, again: bool) -> None:
        """Raises whatever the call raises when there is no way to make an engine anew."""
        try:
            with self._watchdog.watching():
                call(self._usable())
            return
        except Exception as error:
            if self._remake is None:
                raise
            fault = self._told(error)
        self._broken = True
        self._recover(fault)
        if again:
            self._idle_call(call, again=True)

    def _take(self, segment: Segment) -> None:
        """Raises ValueError for a segment that nobody waits for or that its request did not ask for."""
        request = self._requests.get(segment.sample_id)
        if request is None:
            raise ValueError(f"sample {segment.sample_id} came back, which was not pending")
        self._check(segment, request)
        if segment.finish is Finish.ABORT:
            raise ValueError(f"segment of sample {segment.sample_id}: stopped by the engine itself")
        del self._requests[segment.sample_id]

    def _check(self, segment: Segment, request: Request) -> None:
        check_segment(
            segment,
            request,
            eos_ids=self._eos_ids,
            vocabulary=self._vocabulary,
            version=self.version,
            logprobs=request.sampling == self._sampling,
        )

    def _check_progress(self) -> None:
        """Raises TimeoutError when steps come back, but no tokens for longer than the deadline."""
        tokens, now, deadline = self._tokens(), time.monotonic(), self._watchdog.deadline
        if tokens != self._moved[0] or not self._requests:
            self._moved = (tokens, now)
        elif deadline and now - self._moved[1] > deadline:
            self._moved = (tokens, now)
            raise TimeoutError(f"no token in {deadline:g} seconds (engine.deadline)")

    def _recover(self, fault: str) -> None:
        """Give out again whatever has not come back. Raises UserError after too many faults.

        Called outside of `except`: a traceback would keep the old engine's memory from the new one.
        """
        while fault:
            self._count(fault)
            if self._in_row >= self._max_faults:
                raise UserError(
                    f"the engine failed {self._in_row} times in a row (engine.max_faults), at last with: {fault}. "
                    + self._advice()
                )
            try:
                with self._watchdog.watching():
                    self._give_out_again()
                fault = ""
            except EngineMismatch:
                raise
            except Exception as error:
                fault = self._told(error)

    def _give_out_again(self) -> None:
        if self._in_row > 1 or self._killed:
            self._broken = True
        if self._engine and (self._remake is None or not self._broken):
            self._engine.abort()  # what was decoded is discarded: the same will be drawn again
            self._broken = False
        engine = self._usable()
        if engine.pending:
            raise ValueError(f"{engine.pending} requests pending after all were stopped")
        for request in self._requests.values():
            engine.add(request)
        self._past.retried += len(self._requests)

    def _usable(self) -> Engine:
        """The engine, made anew if it must be."""
        if (self._broken and self._remake) or self._engine is None:
            assert self._remake is not None
            self._past, old, self._engine = self.stats, self._engine, None
            with suppress(Exception):  # it may be past closing
                if old:
                    old.close()
            del old  # its memory is needed
            with self._watchdog.patient(START_SECONDS):
                self._engine, self._killed = self._remake(), ""
        self._broken = False
        return self._engine

    def _count(self, fault: str) -> None:
        self._in_row += 1
        self._past.faults += 1
        self.tell(f"engine: {fault}; {len(self._requests)} requests had not come back")

    def _told(self, error: Exception) -> str:
        """What went wrong, on one line, and where."""
        lines = str(error).splitlines() or [""]
        where = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__}: {lines[0]} ({os.path.basename(where.filename)}:{where.lineno})"
        return f"{self._killed}; {told}" if self._killed else told

    def _advice(self) -> str:
        return f"Everything up to the last checkpoint is safe. Go on with: {self._resume}" if self._resume else ""

    def _tokens(self) -> int:
        now = self._engine.stats if self._engine else EngineStats()
        return now.decode_tokens + now.prefill_tokens

    def _died(self) -> bool:
        return isinstance(self._engine, OwnProcess) and not self._killed and self._engine.died()

    def _hung(self, seconds: float) -> None:
        """In the watchdog's thread: make the call that hangs raise, or end the process."""
        if isinstance(engine := self._engine, OwnProcess) and not self._killed:
            why = "its process died" if engine.died() else f"killed after {seconds:.0f} seconds without a sign of life"
            self._killed = why
            if engine.kill():
                return
        faulthandler.dump_traceback(file=2)
        for child in multiprocessing.active_children():  # an engine's, which would outlive us
            child.kill()
        message = f"error: the engine hangs: no token in {seconds:.0f} seconds (engine.deadline). {self._advice()}\n"
        os.write(2, message.encode())
        os._exit(HUNG)


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)
