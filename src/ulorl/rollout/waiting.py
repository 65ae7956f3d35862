"""The order in which the samples of a step enter the engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush, heapreplace
from typing import Protocol, TypeAlias

_Ranked: TypeAlias = list[tuple[float, int]]  # the tokens that a sample lacks, and minus its id; the last is next


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

    lacking: returns the tokens that each of several samples of one group is expected to lack. group: samples a group
    (G); ids are group id * G + member. A heap holds the next sample of each group, so that a change of a group takes
    O(G log G + log n), and n is the number of groups.
    """

    def __init__(self, lacking: Callable[[Sequence[int]], Iterable[float]], group: int) -> None:
        self._lacking, self._group = lacking, group
        self._samples: dict[int, _Ranked] = {}  # of each group
        self._changed: dict[int, None] = {}  # groups whose samples must be ranked again, in order
        self._heap: list[tuple[float, int, int, _Ranked]] = []  # minus the tokens, member, group, samples

    def put(self, sample: int) -> None:
        """Let a sample wait."""
        group = sample // self._group
        self._samples.setdefault(group, []).append((0.0, -sample))
        self._changed[group] = None

    def take(self) -> int:
        """Remove and return the sample that enters next. Raises IndexError when none waits."""
        for group in self._changed:
            self._rank(group)
        self._changed.clear()
        heap = self._heap
        while self._samples.get(heap[0][2]) is not heap[0][3]:  # it was ranked again
            heappop(heap)
        _, _, group, samples = heap[0]
        _, minus_id = samples.pop()
        if samples:
            heapreplace(heap, self._entry(group, samples))
        else:
            heappop(heap)
            del self._samples[group]
        return -minus_id

    def changed(self, group: int) -> None:
        """Take note that other lengths are expected of the samples of a group than before."""
        if group in self._samples:
            self._changed[group] = None

    def _rank(self, group: int) -> None:
        ids = [-minus_id for _, minus_id in self._samples[group]]
        self._samples[group] = ranked = [(tokens, -id) for tokens, id in zip(self._lacking(ids), ids, strict=True)]
        ranked.sort()
        heappush(self._heap, self._entry(group, ranked))

    def _entry(self, group: int, samples: _Ranked) -> tuple[float, int, int, _Ranked]:
        tokens, minus_id = samples[-1]
        return -tokens, -minus_id % self._group, group, samples
