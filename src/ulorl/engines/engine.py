"""The interface of every engine: add, step, abort, load_weights, sleep, close.

An engine has no notion of groups, pools or budgets beyond that of a request; the scheduler decides which samples enter
and when a step ends. Requests and segments are plain data, so an engine may live in another process.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from ulorl.types import Finish, Request, Segment

if TYPE_CHECKING:
    import torch


@dataclass
class EngineStats:
    """The work that an engine has done since it was made; callers take differences."""

    decode_steps: int = 0  # forward passes that decoded one token for every active row
    decode_tokens: int = 0  # tokens drawn
    prefill_tokens: int = 0  # prompt and carried-over tokens whose keys and values were computed
    faults: int = 0  # caught by `RetryingEngine` or `EngineFleet`
    retried: int = 0  # requests added again after a fault
    idle_seconds: float = 0.0  # of the engines of a fleet, together: without a request while the fleet had some

    def since(self, then: EngineStats) -> EngineStats:
        """Return the work done between `then` and now."""
        return EngineStats(*(getattr(self, f.name) - getattr(then, f.name) for f in fields(self)))

    def plus(self, other: EngineStats) -> EngineStats:
        """Return the sum of both."""
        return EngineStats(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def with_faults(self, other: EngineStats) -> EngineStats:
        """Return this work with the faults and retries of `other`."""
        return replace(self, faults=other.faults, retried=other.retried)


class Engine(Protocol):
    """Decodes requests with the newest weights that it was given."""

    @property
    def stats(self) -> EngineStats:
        """The work done so far. The object keeps counting: copy it to compare."""
        ...

    @property
    def pending(self) -> int:
        """The number of requests added and not yet returned as a segment."""
        ...

    def add(self, request: Request) -> None:
        """Queue one request. Raises ValueError when it does not fit the engine's context length."""
        ...

    def step(self) -> list[Segment]:
        """Decode about one token for every active row and return the segments that ended, often none.

        A segment ends by EOS (the EOS token included) or by its request's `max_new_tokens`; EOS exactly on the
        last token of the budget is `Finish.EOS`.
        """
        ...

    def abort(self) -> list[Segment]:
        """Stop every pending request and return the partial segments (`Finish.ABORT`), empty ones too."""
        ...

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Load new weights, given by parameter name; later tokens carry `version`. Keys and values computed with older
        weights are never used again. Raises RuntimeError while requests are pending."""
        ...

    def sleep(self) -> None:
        """Release memory for the learner until the next `add` or `load_weights`, which wake the engine. Raises
        RuntimeError while requests are pending."""
        ...

    def close(self) -> None:
        """Release memory and processes. The engine cannot be used afterwards."""
        ...


@runtime_checkable
class StopsSome(Engine, Protocol):
    """An engine that can stop some of its requests, and goes on with the others."""

    def abort_some(self, sample_ids: Collection[int]) -> list[Segment]:
        """Stop the pending requests of these samples and return the partial segments (`Finish.ABORT`), empty ones too.
        Samples that are not pending are ignored. The other requests draw the tokens that they would draw anyway."""
        ...


@runtime_checkable
class ManyEngines(Engine, Protocol):
    """An engine made of several that decode by themselves, each with its own decode steps."""

    @property
    def given(self) -> Mapping[int, tuple[int, float]]:
        """The engine that was given a sample, by index, and when (`time.perf_counter`), by sample id: of all samples
        given since the last `sleep`, the latest time."""
        ...


@runtime_checkable
class OwnProcess(Engine, Protocol):
    """An engine that may live in its own process. Both methods are called from another thread."""

    def died(self) -> bool:
        """Return whether its process has ended without `close`."""
        ...

    def kill(self) -> bool:
        """End its process at once, so that a call in progress raises. Return False, and do nothing, when it runs in
        this process."""
        ...


def require_idle(engine: Engine, what: str) -> None:
    """Raise RuntimeError while requests are pending: their keys and values belong to the present weights."""
    if engine.pending:
        raise RuntimeError(f"{what} with {engine.pending} requests pending; abort them or decode them first")


def empty_segment(request: Request) -> Segment:
    """Return the segment of an aborted request of which nothing was decoded."""
    empty = np.zeros(0, dtype=np.int32)
    return Segment(request.sample_id, empty, empty.astype(np.float32), empty, Finish.ABORT)
