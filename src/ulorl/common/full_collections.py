"""Keeps Python's garbage collector from the objects that live on, while many small ones are made."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_NEVER = 2**31 - 1  # the largest threshold that gc takes


@contextmanager
def no_full_collections() -> Iterator[None]:
    """Stop all garbage collections in the block but those of the youngest objects, which free most cycles.

    A rollout makes a few objects for each segment, and all of them live on: Python would look at every object of the
    process each time their number has grown by a quarter, and twice more at each new one, which takes as long as the
    controller's own work with 100,000 samples in flight. After the block, Python makes the collection that is due by
    itself.
    """
    youngest, *_ = thresholds = gc.get_threshold()
    gc.set_threshold(youngest, _NEVER, _NEVER)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
