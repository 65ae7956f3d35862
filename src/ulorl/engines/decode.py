"""The rollout over an engine: requests in, segments out as they end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ulorl.cancellation import NEVER, CancelToken
from ulorl.engines.engine import Engine
from ulorl.types import Request, Segment


def rollout(engine: Engine, requests: Sequence[Request], cancel: CancelToken = NEVER) -> Iterator[Segment]:
    """Decode every request to the end of its segment, and yield the segments as they end.

    Raises Cancelled, with requests still pending in the engine, when `cancel` is cancelled between two decode steps.
    """
    entering = iter([requests])
    yield from scheduled_rollout(engine, lambda: next(entering, () if engine.pending else None), cancel)


def scheduled_rollout(
    engine: Engine, next_requests: Callable[[], Sequence[Request] | None], cancel: CancelToken = NEVER
) -> Iterator[Segment]:
    """Decode requests that enter while others decode, and yield the segments as they end.

    next_requests: is called before every decode step, with all earlier segments yielded, and returns the requests that
    enter; None: the rollout is over, and what is pending is stopped and yielded too. The segments of a decode step come
    in the order of their sample ids. Raises Cancelled as `rollout` does.
    """
    while (entering := next_requests()) is not None:
        for request in entering:
            engine.add(request)
        cancel.check()
        yield from sorted(engine.step(), key=lambda segment: segment.sample_id)
    if engine.pending:
        yield from sorted(engine.abort(), key=lambda segment: segment.sample_id)
