"""The rollout over an engine: requests in, segments out as they end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ulorl.engines.engine import Engine
from ulorl.types import Poll, Request, Segment


def rollout(engine: Engine, requests: Sequence[Request], poll: Poll = lambda: None) -> Iterator[Segment]:
    """Decode the requests, each to the end of its segment; segments come as they end."""
    for request in requests:
        engine.add(request)
    while engine.pending:
        poll()
        yield from engine.step()
