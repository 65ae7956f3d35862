"""Decides which engine of a fleet gets which request. Pure: no thread, no clock.

The request with the most expected tokens (its budget, when nothing is known) is given out first, to the engine with the
fewest expected tokens among those with a free slot, and not to one that decodes a sibling (a sample of the same
problem) while another has none: four siblings on one engine made a synchronous step 9% longer than siblings on
different engines, in a simulation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Generic, Protocol, TypeVar


class Dealable(Protocol):
    """What is dealt: a request, or what stands for one in a plan. Tokens: those that it may have, and those that it is
    expected to have, 0: unknown."""

    @property
    def sample_id(self) -> int: ...

    @property
    def max_new_tokens(self) -> int: ...

    @property
    def expected_tokens(self) -> int: ...


R = TypeVar("R", bound=Dealable)


@dataclass
class _Load:
    """The requests that one engine was given and has not returned."""

    free: int  # slots
    tokens: int = 0  # expected
    siblings: dict[int, int] = field(default_factory=dict)  # requests by group; no entry for 0


class Dealer(Generic[R]):
    """Holds the requests that wait, and the load of each engine.

    engines, slots: the number of engines, and of the requests that each decodes at once. group: samples a problem;
    sample ids are group id * group + member.
    """

    def __init__(self, engines: int, slots: int, group: int) -> None:
        self._loads = [_Load(slots) for _ in range(engines)]
        self._group = group
        self._waiting: list[tuple[int, int, R]] = []  # expected tokens, minus the sample id; the last is next
        self._sorted = True
        self._given: dict[int, tuple[_Load, int]] = {}  # by sample id: the engine's load and the expected tokens

    @property
    def waiting(self) -> int:
        """The number of requests that no engine has."""
        return len(self._waiting)

    def add(self, request: R) -> None:
        """Let a request wait."""
        expected = request.expected_tokens or request.max_new_tokens
        self._waiting.append((expected, -request.sample_id, request))
        self._sorted = False

    def clear(self) -> None:
        """Remove the requests that wait."""
        self._waiting.clear()

    def deal(self, engines: Sequence[int]) -> dict[int, list[R]]:
        """Give waiting requests to `engines`, by index, until none waits or no slot is free. Return what each gets."""
        dealt = defaultdict[int, list[R]](list)
        if not self._waiting:
            return dealt
        free = [(load.tokens, index) for index in engines if (load := self._loads[index]).free]
        if not self._sorted:
            self._waiting.sort()  # no two sample ids are the same, so requests are never compared
            self._sorted = True
        heapify(free)
        while self._waiting and free:
            expected, _, request = self._waiting.pop()
            group = request.sample_id // self._group
            index = self._pick(free, group)
            load = self._loads[index]
            load.free -= 1
            load.tokens += expected
            load.siblings[group] = load.siblings.get(group, 0) + 1
            self._given[request.sample_id] = load, expected
            dealt[index].append(request)
            if load.free:
                heappush(free, (load.tokens, index))
        return dealt

    def returned(self, sample_id: int) -> None:
        """Take note that an engine has returned a request, or has lost it."""
        load, expected = self._given.pop(sample_id)
        group = sample_id // self._group
        load.free += 1
        load.tokens -= expected
        if load.siblings[group] == 1:
            del load.siblings[group]
        else:
            load.siblings[group] -= 1

    def _pick(self, free: list[tuple[int, int]], group: int) -> int:
        """Remove an engine from the heap `free` and return it: the fewest siblings, then the fewest tokens."""
        first = heappop(free)
        if group not in self._loads[first[1]].siblings:
            return first[1]
        passed, best = [first], first
        fewest = self._loads[first[1]].siblings[group]
        while free and fewest:
            entry = heappop(free)
            passed.append(entry)
            siblings = self._loads[entry[1]].siblings.get(group, 0)
            if siblings < fewest:
                best, fewest = entry, siblings
        for entry in passed:
            if entry is not best:
                heappush(free, entry)
        return best[1]
