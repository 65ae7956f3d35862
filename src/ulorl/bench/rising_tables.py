"""Times that only rise, from measured ones."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

_ROUNDS = 100  # after which a table of this size hardly changes


def rising(values: Iterable[float]) -> list[float]:
    """Return the values that never fall and are nearest to the given ones, in least squares: neighbours that fall are
    replaced by their mean (pool adjacent violators)."""
    blocks: list[tuple[float, int]] = []  # means of neighbours, and how many they are
    for value in values:
        mean, count = value, 1
        while blocks and blocks[-1][0] > mean:
            before, number = blocks.pop()
            mean, count = (mean * count + before * number) / (count + number), count + number
        blocks.append((mean, count))
    return [mean for mean, count in blocks for _ in range(count)]


def rising_table(table: ArrayLike) -> NDArray[np.float64]:
    """Return the table, [R, C], that falls along no row and no column and is nearest to the given one, in least
    squares: alternating projections with Dykstra's corrections."""
    found = np.array(table, np.float64)
    corrections = np.zeros((2, *found.shape))
    for _ in range(_ROUNDS):
        for axis in (0, 1):
            shifted = found + corrections[axis]
            lines = shifted if axis else shifted.T
            found = np.array([rising(line) for line in lines.tolist()])
            found = found if axis else found.T
            corrections[axis] = shifted - found
    # the columns may still fall by little, as the rounds only come near the nearest table
    return np.maximum.accumulate(found, axis=0)
