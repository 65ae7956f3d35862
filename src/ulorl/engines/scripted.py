"""Engines for tests and for planning: one that plays given outputs, and one whose steps fail as planned. No torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ulorl.engines.engine import Engine, EngineStats, require_idle
from ulorl.engines.forwarding import ForwardingEngine
from ulorl.types import Finish, Request, Segment

if TYPE_CHECKING:
    import torch


@dataclass
class _Row:
    request: Request
    script: Sequence[int]  # the sample's whole output
    drawn: int = 0


class ScriptedEngine:
    """`Engine` that plays `scripts`: the whole output of a sample by its id, as a mapping or a function.

    A script ends with EOS, or is at least as long as what is asked of it. `slots` rows decode at once (0: all), one
    token a step each. `requests` holds every request in the order it came, so that tests can look at budgets and
    prefixes.
    """

    def __init__(
        self,
        scripts: Mapping[int, Sequence[int]] | Callable[[int], Sequence[int]],
        eos_id: int,
        version: int = 0,
        *,
        slots: int = 0,
    ) -> None:
        self.stats = EngineStats()
        self.version = version
        self.requests: list[Request] = []
        self._script = scripts.__getitem__ if isinstance(scripts, Mapping) else scripts
        self._eos_id, self._slots = eos_id, slots
        self._waiting: deque[_Row] = deque()
        self._active: list[_Row] = []

    @staticmethod
    def logprob(version: int, index: int) -> float:
        """Return the log-prob of the token at output index `index` under `version`; no two pairs have the same."""
        return -(1 + version) / (2.0 + index)

    @property
    def pending(self) -> int:
        """The number of requests added and not yet returned as a segment."""
        return len(self._waiting) + len(self._active)

    def add(self, request: Request) -> None:
        """Queue one request. Raises ValueError when it has no budget, does not continue its script, or asks for more
        than a script without EOS holds."""
        script = self._script(request.sample_id)
        end = request.output_length + request.max_new_tokens
        what = f"request of sample {request.sample_id}"
        if request.max_new_tokens < 1:
            raise ValueError(f"{what}: max_new_tokens={request.max_new_tokens} must be at least 1")
        output = request.tokens[len(request.prompt) :].tolist()
        if output != list(script[: len(output)]) or self._eos_id in output:
            raise ValueError(f"{what}: its output so far, {output}, is not an unfinished beginning of its script")
        if self._eos_id not in script[:end] and len(script) < end:
            raise ValueError(f"{what}: asks for output tokens up to {end}, its script has {len(script)} and no EOS")
        self.requests.append(request)
        self._waiting.append(_Row(request, script))

    def step(self) -> list[Segment]:
        """Decode one token for every active row; return the segments that ended."""
        while self._waiting and not (self._slots and len(self._active) >= self._slots):
            row = self._waiting.popleft()
            self._active.append(row)
            self.stats.prefill_tokens += row.request.length
        if self._active:
            self.stats.decode_steps += 1
            self.stats.decode_tokens += len(self._active)
        ended, active = [], []
        for row in self._active:
            token = row.script[row.request.output_length + row.drawn]
            row.drawn += 1
            if token == self._eos_id:
                ended.append(self._segment(row, Finish.EOS))
            elif row.drawn == row.request.max_new_tokens:
                ended.append(self._segment(row, Finish.LENGTH))
            else:
                active.append(row)
        self._active = active
        return ended

    def abort(self) -> list[Segment]:
        """Stop every request and return the partial segments: active rows first, then waiting ones, which are empty."""
        segments = [self._segment(row, Finish.ABORT) for row in (*self._active, *self._waiting)]
        self._active.clear()
        self._waiting.clear()
        return segments

    def abort_some(self, sample_ids: Collection[int]) -> list[Segment]:
        """Stop the requests of these samples and return the partial segments."""
        stopped = [row for row in (*self._active, *self._waiting) if row.request.sample_id in sample_ids]
        self._active = [row for row in self._active if row.request.sample_id not in sample_ids]
        self._waiting = deque(row for row in self._waiting if row.request.sample_id not in sample_ids)
        return [self._segment(row, Finish.ABORT) for row in stopped]

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Set the version; the weights are not used. Raises RuntimeError while requests are pending."""
        require_idle(self, "load_weights")
        deque(weights, maxlen=0)
        self.version = version

    def sleep(self) -> None:
        """Do nothing. Raises RuntimeError while requests are pending."""
        require_idle(self, "sleep")

    def close(self) -> None:
        """Do nothing."""

    def _segment(self, row: _Row, finish: Finish) -> Segment:
        first = row.request.output_length
        end = first + row.drawn
        return Segment(
            row.request.sample_id,
            np.array(row.script[first:end], dtype=np.int32),
            np.array([self.logprob(self.version, index) for index in range(first, end)], dtype=np.float32),
            np.full(row.drawn, self.version, dtype=np.int32),
            finish,
        )


class FaultyEngine(ForwardingEngine):
    """An engine whose steps fail as planned, for tests.

    faults: `faults[n]` is called with the segments of step n (from 0), and returns the segments to return instead, or
    raises.
    """

    def __init__(self, engine: Engine, faults: Mapping[int, Callable[[list[Segment]], list[Segment]]]) -> None:
        super().__init__(engine)
        self._faults = faults
        self.steps = 0

    def step(self) -> list[Segment]:
        """Make a step of the inner engine, and let its fault change the segments."""
        segments = super().step()
        fault = self._faults.get(self.steps)
        self.steps += 1
        return fault(segments) if fault else segments
