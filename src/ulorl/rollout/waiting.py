"""The order in which the samples of a step enter the engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush, heapreplace
from math import ceil
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ulorl.rollout.expected_length import expected_rest, expected_rests

_Entry = tuple[float, int, int]  # minus the tokens that a sample is expected to lack, its member, its group
_Taken = tuple[list[int], list[int], list[int]]  # see `Waiting.take`


class Waiting(Protocol):
    """The samples that wait, by id."""

    def put(self, samples: Mapping[int, int]) -> None:
        """Let samples wait. samples: their output tokens by id."""
        ...

    def take(self, number: int) -> _Taken:
        """Remove the `number` samples that enter next, or all when fewer wait. Return their ids, their output tokens,
        and the tokens that each is expected to lack, 0 where the order does not ask for that."""
        ...

    def expected(self, samples: Sequence[int], tokens: Sequence[int]) -> list[int]:
        """Return the tokens that each of some other unfinished samples is expected to lack, 0 where the order does not
        ask for that. tokens: their output tokens."""
        ...

    def changed(self, group: int) -> None:
        """Take note that other lengths are expected of the samples of a group than before."""
        ...


class FirstInFirstOut:
    """Samples enter in the order in which they came."""

    def __init__(self) -> None:
        self._samples: deque[int] = deque()
        self._tokens: deque[int] = deque()  # output tokens of each

    def put(self, samples: Mapping[int, int]) -> None:
        """Let samples wait. samples: their output tokens by id."""
        self._samples.extend(samples)
        self._tokens.extend(samples.values())

    def take(self, number: int) -> _Taken:
        """Remove and return the samples that enter next, as `Waiting.take` says."""
        number = min(number, len(self._samples))
        samples = [self._samples.popleft() for _ in range(number)]
        return samples, [self._tokens.popleft() for _ in range(number)], [0] * number

    def expected(self, samples: Sequence[int], tokens: Sequence[int]) -> list[int]:  # noqa: ARG002
        """Return zeros: expected lengths do not matter here."""
        return [0] * len(samples)

    def changed(self, group: int) -> None:
        """Do nothing: expected lengths do not matter here."""


class LongestFirst:
    """The sample that is expected to lack the most tokens enters first.

    Of several, the first members of all groups enter before the second ones: so something is known of every group
    early.

    expected_length: returns the output tokens that are expected of the samples of a group. max_tokens: L. group:
    samples a group (G); ids are group id * G + member. All that waits is sorted at once when nothing of it is in order,
    and whenever half of it or more leaves together. A heap holds the next sample of each of the n groups that change or
    come later, so that a sample of them is taken in O(log n), and a change takes O(G log G + log n).
    """

    def __init__(self, expected_length: Callable[[int], float], max_tokens: int, group: int) -> None:
        self._expected_length, self._max_tokens, self._group = expected_length, max_tokens, group
        self._tokens: dict[int, int] = {}  # output tokens of the samples, by id
        self._new: list[Mapping[int, int]] = []  # samples that were put since they were last ordered
        self._changed: set[int] = set()  # groups whose samples must be ordered again
        self._sorted: list[_Entry] = []  # the last one enters next. Those of groups in `_order` are no longer valid
        self._order: dict[int, list[_Entry]] = {}  # of each group that changed or came since; the last one enters next
        self._heap: list[_Entry] = []  # the next one of each of these groups. Some are no longer valid

    def put(self, samples: Mapping[int, int]) -> None:
        """Let samples wait. samples: their output tokens by id."""
        self._tokens |= samples
        self._new.append(samples)

    def take(self, number: int) -> _Taken:
        """Remove and return the samples that enter next, as `Waiting.take` says."""
        number = min(number, len(self._tokens))
        if not number:
            return [], [], []
        if 2 * number >= len(self._tokens) or not (self._sorted or self._heap):
            return self._take_of_all(number)
        self._changed.update(sample // self._group for samples in self._new for sample in samples)
        for group in self._changed:
            self._order_again(group)
        self._new.clear()
        self._changed.clear()
        rests, members, groups = zip(*[self._take() for _ in range(number)], strict=True)
        samples = [group * self._group + member for group, member in zip(groups, members, strict=True)]
        return samples, [self._tokens.pop(sample) for sample in samples], [ceil(-rest) for rest in rests]

    def expected(self, samples: Sequence[int], tokens: Sequence[int]) -> list[int]:
        """Return the tokens that each of some other unfinished samples is expected to lack."""
        return _rounded_up(self._rests(np.array(samples), np.array(tokens)))

    def changed(self, group: int) -> None:
        """Take note that other lengths are expected of the samples of a group than before."""
        self._changed.add(group)

    def _rests(self, ids: NDArray[np.int64], present: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the tokens that samples with `present` tokens are expected to lack, [n]."""
        groups, which = np.unique(ids // self._group, return_inverse=True)
        lengths = np.array([self._expected_length(group) for group in groups.tolist()], np.float64)
        return expected_rests(present, lengths[which], self._max_tokens)

    def _take_of_all(self, number: int) -> _Taken:
        """Sort all samples, and take the first `number`."""
        ids, present = (np.fromiter(values, np.int64) for values in (self._tokens, self._tokens.values()))
        groups, members = np.divmod(ids, self._group)
        rests = self._rests(ids, present)
        order = np.lexsort((groups, members, -rests))
        first, others = order[:number], order[: number - 1 : -1]  # the last one of `_sorted` enters next
        self._sorted = list(zip(*[column[others].tolist() for column in (-rests, members, groups)], strict=True))
        for emptied in (self._new, self._changed, self._order, self._heap):
            emptied.clear()
        self._tokens = dict(zip(ids[others].tolist(), present[others].tolist(), strict=True))
        return ids[first].tolist(), present[first].tolist(), _rounded_up(rests[first])

    def _order_again(self, group: int) -> None:
        """Order the samples of a group that wait, in its own list and the heap."""
        ids = range(group * self._group, (group + 1) * self._group)
        waiting = [(member, self._tokens[id]) for member, id in enumerate(ids) if id in self._tokens]
        if waiting:
            length, limit = self._expected_length(group), self._max_tokens
            order = [(-expected_rest(present, length, limit), member, group) for member, present in waiting]
            order.sort(reverse=True)
            self._order[group] = order
            heappush(self._heap, order[-1])

    def _take(self) -> _Entry:
        ranked, heap = self._sorted, self._heap
        while ranked and ranked[-1][2] in self._order:
            ranked.pop()
        while heap and not self._valid(heap[0]):
            heappop(heap)
        if not heap or (ranked and ranked[-1] < heap[0]):
            return ranked.pop()
        entry = heap[0]
        order = self._order[entry[2]]
        order.pop()
        if order:
            heapreplace(heap, order[-1])
        else:
            heappop(heap)
        return entry

    def _valid(self, entry: _Entry) -> bool:
        """Return whether an entry of the heap is the next one of its group, as the group was last ordered."""
        order = self._order[entry[2]]
        return bool(order) and order[-1] is entry


def _rounded_up(numbers: NDArray[np.float64]) -> list[int]:
    whole: list[int] = np.ceil(numbers).astype(np.int64).tolist()
    return whole
