"""The order in which the samples of a step enter the engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from heapq import heappop, heappush, heapreplace
from itertools import chain
from typing import Protocol

from ulorl.rollout.expected_length import expected_rest

_Entry = tuple[float, int, int]  # minus the tokens that a sample is expected to lack, its member, its group


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
    samples a group (G); ids are group id * G + member. What waits when a step begins is sorted once. A heap holds the
    next sample of each of the n groups that change or come later, so that a sample of them is taken in O(log n), and a
    change takes O(G log G + log n).
    """

    def __init__(self, expected_length: Callable[[int], float], max_tokens: int, group: int) -> None:
        self._expected_length, self._max_tokens, self._group = expected_length, max_tokens, group
        self._tokens: dict[int, dict[int, int]] = {}  # output tokens by group and member
        self._changed: dict[int, None] = {}  # groups whose members must be ordered again, in order
        self._order: dict[int, list[_Entry]] = {}  # of each group; the last one enters next
        self._sorted: list[_Entry] = []  # of many groups; the last one enters next. Some are no longer valid
        self._heap: list[_Entry] = []  # the next one of each other group. Some are no longer valid

    def put(self, samples: Mapping[int, int]) -> None:
        """Let samples wait. samples: their output tokens by id."""
        for sample, tokens in samples.items():
            group, member = divmod(sample, self._group)
            self._tokens.setdefault(group, {})[member] = tokens
            self._changed[group] = None

    def take(self, number: int) -> list[int]:
        """Remove and return the samples that enter next. Raises IndexError when fewer wait."""
        changed = [self._ordered(group) for group in self._changed]
        self._changed.clear()
        if self._sorted or self._heap:
            for order in changed:
                heappush(self._heap, order[-1])
        else:
            self._sorted = sorted(chain.from_iterable(changed), reverse=True)
        return [self._take() for _ in range(number)]

    def changed(self, group: int) -> None:
        """Take note that other lengths are expected of the samples of a group than before."""
        if group in self._tokens:
            self._changed[group] = None

    def _ordered(self, group: int) -> list[_Entry]:
        """Order the samples of a group again."""
        length, limit = self._expected_length(group), self._max_tokens
        entries = [(-expected_rest(n, length, limit), member, group) for member, n in self._tokens[group].items()]
        self._order[group] = order = sorted(entries, reverse=True)
        return order

    def _take(self) -> int:
        ranked, heap = self._sorted, self._heap
        while ranked and not self._valid(ranked[-1]):
            ranked.pop()
        while heap and not self._valid(heap[0]):
            heappop(heap)
        from_heap = not ranked or (bool(heap) and heap[0] < ranked[-1])
        _, member, group = heap[0] if from_heap else ranked.pop()
        order = self._order[group]
        order.pop()
        if from_heap and order:
            heapreplace(heap, order[-1])
        elif from_heap:
            heappop(heap)
        if order:
            del self._tokens[group][member]
        else:
            del self._tokens[group], self._order[group]
        return group * self._group + member

    def _valid(self, entry: _Entry) -> bool:
        """Return whether an entry is the next one of its group, as the group was last ordered."""
        order = self._order.get(entry[2])
        return order is not None and order[-1] is entry
