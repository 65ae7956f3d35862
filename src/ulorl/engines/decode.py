"""The rollout over an engine: requests in, segments out as they end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ulorl.cancellation import NEVER, CancelToken
from ulorl.engines.engine import Engine
from ulorl.types import Request, Segment


def rollout(engine: Engine, requests: Sequence[Request], cancel: CancelToken = NEVER) -> Iterator[Segment]:
    """Decode every request to the end of its segment, and yield the segments as they end.

    Raises Cancelled, with requests still pending in the engine, when `cancel` is cancelled between two decode steps.
    """
    for request in requests:
        engine.add(request)
    while engine.pending:
        cancel.check()
        yield from engine.step()
