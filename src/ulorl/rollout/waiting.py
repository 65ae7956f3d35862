"""The order in which the samples of a step enter the engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Protocol


class Waiting(Protocol):
    """The samples that wait, by id."""

    def put(self, sample: int) -> None:
        """Let a sample wait."""
        ...

    def take(self) -> int:
        """Remove and return the sample that enters next. Raises IndexError when none waits."""
        ...

    def changed(self, group: int) -> None:
        """Take note that other lengths are expected of the samples of a group than before."""
        ...


class FirstInFirstOut:
    """Samples enter in the order in which they came."""

    def __init__(self) -> None:
        self._samples: deque[int] = deque()

    def put(self, sample: int) -> None:
        """Let a sample wait."""
        self._samples.append(sample)

    def take(self) -> int:
        """Remove and return the sample that enters next. Raises IndexError when none waits."""
        return self._samples.popleft()

    def changed(self, group: int) -> None:
        """Do nothing: expected lengths do not matter here."""


class LongestFirst:
    """The sample with the most expected tokens enters first.

    Of several, the first members of all groups enter before the second ones: so something is known of every group
    early.

    expected: of a sample, the tokens that it still lacks. group: samples a group (G); ids are group id * G + member.
    A heap holds the next sample of each group, so that a change of a group takes O(G + log n).
    """

    def __init__(self, expected: Callable[[int], float], group: int) -> None:
        self._expected, self._group = expected, group
        self._samples: dict[int, list[int]] = {}  # that wait, of each group
        self._changed: dict[int, None] = {}  # groups whose next sample must be found again, in order
        self._next: dict[int, tuple[float, int, int]] = {}  # of each group, its valid entry in the heap
        self._heap: list[tuple[float, int, int]] = []  # minus the expected tokens, member, group

    def put(self, sample: int) -> None:
        """Let a sample wait."""
        group = sample // self._group
        self._samples.setdefault(group, []).append(sample)
        self._changed[group] = None

    def take(self) -> int:
        """Remove and return the sample that enters next. Raises IndexError when none waits."""
        for group in self._changed:
            self._find_next(group)
        self._changed.clear()
        while True:
            entry = heappop(self._heap)
            _, member, group = entry
            if self._next.get(group) is entry:
                break
        sample = group * self._group + member
        self._samples[group].remove(sample)
        self._changed[group] = None
        return sample

    def changed(self, group: int) -> None:
        """Take note that other lengths are expected of the samples of a group than before."""
        if group in self._samples:
            self._changed[group] = None

    def _find_next(self, group: int) -> None:
        samples = self._samples[group]
        if not samples:
            del self._samples[group]
            self._next.pop(group, None)
            return
        entry = min((-self._expected(sample), sample % self._group, group) for sample in samples)
        self._next[group] = entry
        heappush(self._heap, entry)
