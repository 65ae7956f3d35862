"""Sorting by adjacent swaps: the whole list is written again after every swap, until it is sorted.

    3,1,2
    1,3,2
    1,2,3

The first line is the problem. Any order of swaps that leads to the sorted list is right. Demonstrations swap a random
pair of neighbours that are out of order, so they have as many lines as the list has inversions, and no two are alike.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from ulorl.data.task_definition import DrawnTask

LARGEST = 20
_LIST = re.compile(r"[1-9][0-9]?(?:,[1-9][0-9]?)*")


class Sorting(DrawnTask):
    """Lists of distinct numbers, 1 to 20, that are not sorted yet."""

    words = (*map(str, range(1, LARGEST + 1)), ",", "\n")

    def draw(self, rng: random.Random, numbers: Sequence[int] = (4, 5, 6, 7)) -> str:
        """Return a random list. numbers: the lengths that a list may have, in equal shares, each within 2..20."""
        if not (
            isinstance(numbers, list | tuple)
            and numbers
            and all(isinstance(n, int) and 2 <= n <= LARGEST for n in numbers)
        ):
            message = f"numbers must be a list of lengths within 2..{LARGEST}, found {numbers!r}"
            raise ValueError(message)
        values = rng.sample(range(1, LARGEST + 1), rng.choice(list(numbers)))
        while values == sorted(values):
            rng.shuffle(values)
        return _text(values)

    def demonstrate(self, problem: str, rng: random.Random) -> str:
        """Return the lists after each of the fewest possible swaps, in a random order of swaps."""
        values, lines = _values(problem), []
        while wrong := [i for i in range(len(values) - 1) if values[i] > values[i + 1]]:
            values = _swapped(values, rng.choice(wrong))
            lines.append(_text(values))
        return "\n".join(lines)

    def check(self, problem: str, output: str) -> bool:
        """Return whether every line is the line above with two neighbours swapped, and the last line is sorted."""
        values = _values(problem)
        for line in output.split("\n"):
            if not _LIST.fullmatch(line):
                return False
            following = _values(line)
            if following not in (_swapped(values, i) for i in range(len(values) - 1)):
                return False
            values = following
        return values == sorted(values)


def _values(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _text(values: Sequence[int]) -> str:
    return ",".join(map(str, values))


def _swapped(values: Sequence[int], at: int) -> list[int]:
    return [*values[:at], values[at + 1], values[at], *values[at + 2 :]]
