"""An endless, resumable order over the problems: every epoch issues each problem once, shuffled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ulorl import rng

T = TypeVar("T")


class ProblemStream(Generic[T]):
    """Issues `items` (problems, or problems with their encoded prompts) without end.

    The n-th item issued is a function of (seed, n, number of items) only; `cursor`, the number issued so far, is the
    whole state.
    """

    def __init__(self, items: Sequence[T], seed: int, cursor: int = 0) -> None:
        if not items or cursor < 0:
            raise ValueError(f"a stream needs at least one item and a cursor >= 0, found {len(items)} and {cursor}")
        self.items = items
        self.seed = seed
        self.cursor = cursor

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        """Return the next item and advance the cursor."""
        epoch, position = divmod(self.cursor, len(self.items))
        self.cursor += 1
        return self.items[int(_order(self.seed, epoch, len(self.items))[position])]


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    return rng.permutation(seed, epoch, n)
