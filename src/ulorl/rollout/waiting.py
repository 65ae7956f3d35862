"""The order in which the samples of a step enter the engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from heapq import heappop, heappush, heapreplace
from typing import Protocol

from ulorl.rollout.expected_length import expected_rest


class Waiting(Protocol):
    """The samples that wait, by id."""

    def put(self, samples: Mapping[int, int]) -> None:
        """Let samples wait. samples: their output tokens by id."""
        ...

    def take(self, number: int) -> list[int]:
        """Remove and return the samples that enter next. Raises IndexError when fewer wait."""
        ...

    def changed(self, group: int) -> None:
        """Take note that other lengths are expected of the samples of a group than before."""
        ...


class FirstInFirstOut:
    """Samples enter in the order in which they came."""

    def __init__(self) -> None:
        self._samples: deque[int] = deque()

    def put(self, samples: Mapping[int, int]) -> None:
        """Let samples wait; their lengths do not matter here."""
        self._samples.extend(samples)

    def take(self, number: int) -> list[int]:
        """Remove and return the samples that enter next. Raises IndexError when fewer wait."""
        return [self._samples.popleft() for _ in range(number)]

    def changed(self, group: int) -> None:
        """Do nothing: expected lengths do not matter here."""


class LongestFirst:
    """The sample that is expected to lack the most tokens enters first.

    Of several, the first members of all groups enter before the second ones: so something is known of every group
    early.

    expected_length: returns the output tokens that are expected of the samples of a group. max_tokens: L. group:
    samples a group (G); ids are group id * G + member; samples of a group are put in the order of their ids. A heap
    holds the next sample of each group, so that a change of one of n groups takes O(log n) when its samples have
    equally many tokens (most have none), else O(G + log n).
    """

    def __init__(self, expected_length: Callable[[int], float], max_tokens: int, group: int) -> None:
        self._expected_length, self._max_tokens, self._group = expected_length, max_tokens, group
        self._samples: dict[int, dict[int, deque[int]]] = {}  # by group and output tokens
        self._changed: dict[int, None] = {}  # groups whose next sample must be found again, in order
        self._next: dict[int, tuple[float, int, int, int]] = {}  # of each group, its valid entry in the heap
        self._heap: list[tuple[float, int, int, int]] = []  # minus what it is expected to lack, member, group, tokens

    def put(self, samples: Mapping[int, int]) -> None:
        """Let samples wait. samples: their output tokens by id."""
        for sample, tokens in samples.items():
            group = sample // self._group
            self._samples.setdefault(group, {}).setdefault(tokens, deque()).append(sample)
            self._changed[group] = None

    def take(self, number: int) -> list[int]:
        """Remove and return the samples that enter next. Raises IndexError when fewer wait."""
        for group in self._changed:
            heappush(self._heap, self._entry(group))
        self._changed.clear()
        return [self._take() for _ in range(number)]

    def changed(self, group: int) -> None:
        """Take note that other lengths are expected of the samples of a group than before."""
        if group in self._samples:
            self._changed[group] = None

    def _take(self) -> int:
        heap = self._heap
        while self._next.get(heap[0][2]) is not heap[0]:
            heappop(heap)
        _, _, group, tokens = heap[0]
        samples = self._samples[group]
        sample = samples[tokens].popleft()
        if not samples[tokens]:
            del samples[tokens]
        if samples:
            heapreplace(heap, self._entry(group))
        else:
            heappop(heap)
            del self._samples[group], self._next[group]
        return sample

    def _entry(self, group: int) -> tuple[float, int, int, int]:
        """Return the new valid entry of a group in the heap."""
        length, limit, members = self._expected_length(group), self._max_tokens, self._group
        entries = [
            (-expected_rest(tokens, length, limit), samples[0] % members, group, tokens)
            for tokens, samples in self._samples[group].items()
        ]
        self._next[group] = entry = min(entries)
        return entry
