"""An engine around another one that passes every call on: the base of engines that add to one of the calls."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ulorl.engines.engine import Engine, EngineStats
from ulorl.types import Request, Segment

if TYPE_CHECKING:
    import torch


class ForwardingEngine:
    """`Engine` that passes every call on to `engine`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def stats(self) -> EngineStats:
        """The work of the inner engine."""
        return self._engine.stats

    @property
    def pending(self) -> int:
        """The number of requests pending in the inner engine."""
        return self._engine.pending

    def add(self, request: Request) -> None:
        """Queue one request."""
        self._engine.add(request)

    def step(self) -> list[Segment]:
        """Make a step of the inner engine."""
        return self._engine.step()

    def abort(self) -> list[Segment]:
        """Stop every request and return the partial segments."""
        return self._engine.abort()

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Load weights into the inner engine."""
        self._engine.load_weights(weights, version)

    def sleep(self) -> None:
        """Release the inner engine's keys and values."""
        self._engine.sleep()

    def close(self) -> None:
        """Close the inner engine."""
        self._engine.close()
