"""The seam every engine stands behind: add, step, abort, load_weights.

An engine knows nothing of groups, pools or budgets beyond a request's own; the scheduler decides who enters and when
a step ends. Requests and segments are plain data, so an engine may live in another process.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ulorl.types import Request, Segment

if TYPE_CHECKING:
    import torch


@dataclass
class EngineStats:
    """Work done since the engine was made; callers take differences."""

    decode_steps: int = 0  # forward passes that decoded one token for every active row
    decode_tokens: int = 0  # tokens drawn
    prefill_tokens: int = 0  # prompt and carried-over tokens whose keys and values were computed


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
