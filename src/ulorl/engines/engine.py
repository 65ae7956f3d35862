"""The seam every engine stands behind: add, step, abort, load_weights; and what may cross it.

An engine knows nothing of groups, pools or budgets beyond a request's own; the scheduler decides who enters and when
a step ends. Requests and segments are plain data, so an engine may live in another process.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ulorl.types import Finish, Request, Segment

if TYPE_CHECKING:
    import torch

ROUNDING = 1e-3  # nats above 0 that rounding may bring a log-prob to


@dataclass
class EngineStats:
    """Work done since the engine was made; callers take differences."""

    decode_steps: int = 0  # forward passes that decoded one token for every active row
    decode_tokens: int = 0  # tokens drawn
    prefill_tokens: int = 0  # prompt and carried-over tokens whose keys and values were computed
    faults: int = 0  # what `engines.guard` caught
    retried: int = 0  # requests given out again after a fault

    def since(self, then: EngineStats) -> EngineStats:
        """The work done between `then` and now."""
        return EngineStats(*(getattr(self, f.name) - getattr(then, f.name) for f in fields(self)))

    def plus(self, other: EngineStats) -> EngineStats:
        return EngineStats(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def with_faults(self, other: EngineStats) -> EngineStats:
        """This work, with the faults of `other`."""
        return replace(self, faults=other.faults, retried=other.retried)


class Engine(Protocol):
    """Decodes requests with the newest weights it was given."""

    @property
    def stats(self) -> EngineStats:
        """Work done so far; it goes on counting, so keep a copy."""
        ...

    @property
    def pending(self) -> int:
        """Requests added and not yet returned as a segment."""
        ...

    def add(self, request: Request) -> None:
        """Queue one request. Raises ValueError when it cannot fit the engine's context length."""
        ...

    def step(self) -> list[Segment]:
        """Decode a little (about one token a row) and return the segments that ended in it, often none.

        A segment ends by EOS (the EOS token included) or by its request's `max_new_tokens`; EOS exactly on the
        last token of the budget is `Finish.EOS`.
        """
        ...

    def abort(self) -> list[Segment]:
        """Stop every pending request and return the partial segments (`Finish.ABORT`), also the empty ones."""
        ...

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Take new weights by the model's parameter names; later tokens carry `version`. Keys and values computed
        with older weights are never used again: requires `pending == 0`, else raises RuntimeError."""
        ...

    def sleep(self) -> None:
        """Release what memory can be released until the next `add` or `load_weights`, which wake the engine: the
        learner works now. Requires `pending == 0`, else raises RuntimeError."""
        ...

    def close(self) -> None:
        """Give back memory and processes. The engine is not used again."""
        ...


@runtime_checkable
class OwnProcess(Engine, Protocol):
    """An engine that may live in a process of its own. Both calls come from another thread."""

    def died(self) -> bool:
        """Whether its process has ended although nobody closed it."""
        ...

    def kill(self) -> bool:
        """End its process at once, so that a call in progress raises; False when it lives in ours, and nothing ends."""
        ...


def require_idle(engine: Engine, what: str) -> None:
    """Raises RuntimeError while requests are pending: their keys and values are of the present weights."""
    if engine.pending:
        raise RuntimeError(f"{what} with {engine.pending} requests pending; abort them or decode them first")


def check_request(request: Request, *, vocabulary: int, max_length: int) -> None:
    """Raises ValueError when a request is empty, does not fit the engine's context or cannot be sampled."""
    what, tokens, how = f"request of sample {request.sample_id}", request.tokens, request.sampling
    if not 0 < request.prompt_length <= len(tokens):
        raise ValueError(f"{what}: prompt of {request.prompt_length} tokens in {len(tokens)}; it must not be empty")
    if request.max_new_tokens < 1:
        raise ValueError(f"{what}: max_new_tokens={request.max_new_tokens} must be at least 1")
    if len(tokens) + request.max_new_tokens > max_length:
        raise ValueError(
            f"{what}: {len(tokens)} tokens and a budget of {request.max_new_tokens} exceed the engine's context "
            f"length of {max_length}"
        )
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise ValueError(f"{what}: token ids must lie in 0..{vocabulary - 1}, found {tokens.min()}..{tokens.max()}")
    if not (0 <= how.temperature < np.inf and 0 < how.top_p <= 1 and how.top_k >= 0):
        raise ValueError(f"{what}: {how} needs temperature >= 0, 0 < top_p <= 1 and top_k >= 0")


def check_segment(
    segment: Segment, request: Request, *, eos_ids: NDArray[np.int32], vocabulary: int, version: int, logprobs: bool
) -> None:
    """Raises ValueError when a segment is not what `request` asked for. Linear in its tokens.

    logprobs: whether they are needed: an engine that cannot give those of a request's sampling gives NaN.
    """
    what, tokens, n = f"segment of sample {request.sample_id}", segment.tokens, len(segment.tokens)
    for name, array, kinds in (
        ("tokens", tokens, "iu"),
        ("logprobs", segment.logprobs, "f"),
        ("versions", segment.versions, "iu"),
    ):
        if array.shape != (n,) or array.dtype.kind not in kinds:
            raise ValueError(
                f"{what}: {name} of shape {array.shape} and type {array.dtype}, its {n} tokens need ({n},)"
            )
    if segment.sample_id != request.sample_id:
        raise ValueError(f"{what}: came back as sample {segment.sample_id}'s")
    if n > request.max_new_tokens:
        raise ValueError(f"{what}: {n} tokens, asked for {request.max_new_tokens} at most")
    if n and not (tokens.min() >= 0 and tokens.max() < vocabulary):
        raise ValueError(f"{what}: token ids {tokens.min()}..{tokens.max()}, the vocabulary is 0..{vocabulary - 1}")
    if (other := segment.versions != version).any():
        raise ValueError(f"{what}: version {segment.versions[other][0]}, the weights are version {version}")
    wrong = ~((segment.logprobs <= ROUNDING) & (segment.logprobs > -np.inf))
    if logprobs and wrong.any():
        raise ValueError(f"{what}: {wrong.sum()} log-probs are no finite number up to 0: {segment.logprobs[wrong][0]}")
    _check_end(what, segment, request, np.flatnonzero(np.isin(tokens, eos_ids)))


def _check_end(what: str, segment: Segment, request: Request, eos_at: NDArray[Any]) -> None:
    n = len(segment.tokens)
    if segment.finish is Finish.EOS:
        if eos_at.tolist() != [n - 1]:
            raise ValueError(f"{what}: finish 'eos' with {n} tokens and EOS at {eos_at.tolist()}")
    elif len(eos_at):
        raise ValueError(f"{what}: finish {segment.finish.value!r} with {n} tokens and EOS at {eos_at.tolist()}")
    elif segment.finish is Finish.LENGTH and n < request.max_new_tokens:
        raise ValueError(f"{what}: finish 'length' after {n} of {request.max_new_tokens} tokens")


def empty_segment(request: Request) -> Segment:
    """What an aborted request that never began brings."""
    empty = np.zeros(0, dtype=np.int32)
    return Segment(request.sample_id, empty, empty.astype(np.float32), empty, Finish.ABORT)
