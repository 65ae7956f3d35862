"""The seam every engine stands behind: add, step, abort, load_weights.

An engine knows nothing of groups, pools or budgets beyond a request's own; the scheduler decides who enters and when
a step ends. Requests and segments are plain data, so an engine may live in another process.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ulorl.types import Finish, Request, Segment

if TYPE_CHECKING:
    import torch


@dataclass
class EngineStats:
    """Work done since the engine was made; callers take differences."""

    decode_steps: int = 0  # forward passes that decoded one token for every active row
    decode_tokens: int = 0  # tokens drawn
    prefill_tokens: int = 0  # prompt and carried-over tokens whose keys and values were computed

    def since(self, then: EngineStats) -> EngineStats:
        """The work done between `then` and now."""
        return EngineStats(
            self.decode_steps - then.decode_steps,
            self.decode_tokens - then.decode_tokens,
            self.prefill_tokens - then.prefill_tokens,
        )


class Engine(Protocol):
    """Decodes requests with the newest weights it was given."""

    stats: EngineStats

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


def empty_segment(request: Request) -> Segment:
    """What an aborted request that never began brings."""
    empty = np.zeros(0, dtype=np.int32)
    return Segment(request.sample_id, empty, empty.astype(np.float32), empty, Finish.ABORT)
