"""The order in which the samples of a step enter the engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from heapq import heappop, heappush, heapreplace
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
    samples a group (G); ids are group id * G + member. A heap holds the next sample of each of n groups, so that a
    sample is taken in O(log n), and a change of a group takes O(G log G + log n).
    """

    def __init__(self, expected_length: Callable[[int], float], max_tokens: int, group: int) -> None:
        self._expected_length, self._max_tokens, self._group = expected_length, max_tokens, group
        self._tokens: dict[int, dict[int, int]] = {}  # output tokens by group and member
        self._changed: dict[int, None] = {}  # groups whose members must be ordered again, in order
        self._order: dict[int, list[_Entry]] = {}  # of each group; the last one enters next
        self._heap: list[_Entry] = []  # the last one of each order, and those of orders that are no longer valid

    def put(self, samples: Mapping[int, int]) -> None:
        """Let samples wait. samples: their output tokens by id."""
        for sample, tokens in samples.items():
            group, member = divmod(sample, self._group)
            self._tokens.setdefault(group, {})[member] = tokens
            self._changed[group] = None

    def take(self, number: int) -> list[int]:
        """Remove and return the samples that enter next. Raises IndexError when fewer wait."""
        for group in self._changed:
            length, limit = self._expected_length(group), self._max_tokens
            entries = [(-expected_rest(n, length, limit), member, group) for member, n in self._tokens[group].items()]
            self._order[group] = sorted(entries, reverse=True)
            heappush(self._heap, self._order[group][-1])
        self._changed.clear()
        return [self._take() for _ in range(number)]

    def changed(self, group: int) -> None:
        """Take note that other lengths are expected of the samples of a group than before."""
        if group in self._tokens:
            self._changed[group] = None

    def _take(self) -> int:
        heap = self._heap
        while not (order := self._order.get(heap[0][2])) or order[-1] is not heap[0]:
            heappop(heap)
        _, member, group = order.pop()
        if order:
            heapreplace(heap, order[-1])
            del self._tokens[group][member]
        else:
            heappop(heap)
            del self._tokens[group], self._order[group]
        return group * self._group + member
