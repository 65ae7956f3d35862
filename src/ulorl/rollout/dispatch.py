"""Applies a schedule to one step: which samples are sent to the engine now, with which budgets, and when the step ends.

It holds ids and lengths, no tokens, so that the planner plays millions of samples with it.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from heapq import heapify, heappop, heappush
from math import inf
from typing import NamedTuple

from ulorl.rollout.expected_length import expected_length, expected_rest
from ulorl.rollout.schedules import Schedule, StepCounts
from ulorl.rollout.waiting import FirstInFirstOut, LongestFirst, Waiting


class Carried(NamedTuple):
    """An unfinished sample at the beginning of a step: its output tokens so far, and the versions that drew them."""

    id: int
    tokens: int
    versions: int


class StepDispatch:
    """One step under `schedule`.

    max_tokens: the global maximum output length L. carried: the unfinished samples, in the order in which they enter.
    open_groups: the output tokens of the finished samples of each group that was not trained yet, by group id. Sample
    ids are group id * G + member. slots: the samples that the engine decodes at once, 0: unknown. visited: returns the
    mean output tokens of earlier visits of a group's problem, 0 without one. next_group: the id of the next new group.

    No more samples are sent than the engine decodes at once, so that their order is decided here, when a slot becomes
    free. First in, first out, carried samples enter before new ones. Longest first, samples that must finish, and those
    of groups that were opened before the last N ones when the step began, enter before all others, in their order. So
    no group waits for ever.
    """

    def __init__(
        self,
        schedule: Schedule,
        max_tokens: int,
        carried: Iterable[Carried],
        open_groups: Mapping[int, int],
        *,
        slots: int = 0,
        visited: Callable[[int], float] = lambda _: 0.0,
        next_group: int = 0,
    ) -> None:
        self.counts = StepCounts(open=len(open_groups))
        self._schedule, self._max_tokens = schedule, max_tokens
        self._visited = cache(visited)  # within a step, it does not change
        self._nothing_left = False
        self._group_tokens = dict(open_groups)  # of finished samples, by group
        self._left: dict[int, int] = {}  # unfinished samples of each group that has some
        self._lengths: dict[int, int] = {}  # output tokens of each unfinished sample
        self._must_finish: set[int] = set()
        longest_first = schedule.order == "longest"
        self._waiting: Waiting = FirstInFirstOut()
        if longest_first:
            self._waiting = LongestFirst(self._expected_length, max_tokens, schedule.group)
        self._first: deque[int] = deque()  # of those that wait, the samples that enter before all others
        self._places = min(schedule.places or sys.maxsize, slots or sys.maxsize)
        for sample in carried:
            if must_finish := schedule.max_versions > 0 and sample.versions >= schedule.max_versions - 1:
                self._must_finish.add(sample.id)
            late = sample.id // schedule.group < next_group - schedule.prompts
            self._carry(sample.id, sample.tokens, first=longest_first and (must_finish or late))
        self.counts.must_finish = len(self._must_finish)
        self._outstanding = deque(sorted(self._left))  # by age; groups that are finished by now are removed lazily
        self._finished = [group for group in open_groups if group not in self._left]  # not ready; a heap
        heapify(self._finished)
        self._count_ready()

    @property
    def over(self) -> bool:
        """Whether the step is over: its schedule ends it, or no sample was left when `admit` was called."""
        return self._nothing_left or self._schedule.over(self.counts)

    def new_groups(self) -> int:
        """Return the number of groups to open now."""
        return self._schedule.new_groups(self.counts)

    def open(self, group: int) -> None:
        """Open a group; its id must be greater than that of all earlier groups."""
        size = self._schedule.group
        self._outstanding.append(group)
        self._group_tokens[group] = 0
        self._left[group] = size
        self.counts.open += 1
        self.counts.waiting += size
        for sample in range(group * size, (group + 1) * size):
            self._lengths[sample] = 0
            self._waiting.put(sample, 0)

    def admit(self) -> list[tuple[int, int]]:
        """Return the ids and budgets in tokens of the samples to send to the engine now."""
        counts, first, take = self.counts, self._first, self._waiting.take
        number = max(0, min(counts.waiting, self._places - counts.in_flight))
        samples = [first.popleft() if first else take() for _ in range(number)]
        counts.waiting -= number
        counts.in_flight += number
        counts.beginning = False
        self._nothing_left = not counts.in_flight
        return [(sample, self._budget(sample)) for sample in samples]

    def expected_tokens(self, sample: int) -> float:
        """Return the tokens that an unfinished sample is expected to lack until it is finished."""
        length = self._expected_length(sample // self._schedule.group)
        return expected_rest(self._lengths[sample], length, self._max_tokens)

    def ended(self, sample: int, tokens: int, *, finished: bool) -> None:
        """Take note that the engine returned a sample with `tokens` new tokens."""
        self.counts.in_flight -= 1
        length = self._lengths.pop(sample) + tokens
        if sample in self._must_finish:
            self._must_finish.remove(sample)
            self.counts.must_finish -= 1
        if not finished:
            return
        group = sample // self._schedule.group
        self._group_tokens[group] += length
        self._left[group] -= 1
        if not self._left[group]:
            del self._left[group]
            heappush(self._finished, group)
            self._count_ready()
        else:
            self._waiting.changed(group)

    def _expected_length(self, group: int) -> float:
        finished = self._schedule.group - self._left[group]
        return expected_length(self._group_tokens[group], finished, self._visited(group), self._max_tokens)

    def _carry(self, sample: int, tokens: int, *, first: bool) -> None:
        group = sample // self._schedule.group
        self._left[group] = self._left.get(group, 0) + 1
        self._lengths[sample] = tokens
        if first:
            self._first.append(sample)
        else:
            self._waiting.put(sample, tokens)
        self.counts.waiting += 1

    def _budget(self, sample: int) -> int:
        left, segment = self._max_tokens - self._lengths[sample], self._schedule.segment_tokens
        return left if not segment or left < segment or sample in self._must_finish else segment

    def _count_ready(self) -> None:
        """Count the finished groups that the window lets train."""
        while self._outstanding and self._outstanding[0] not in self._left:
            self._outstanding.popleft()
        window = self._schedule.window
        end = self._outstanding[0] + window if window and self._outstanding else inf
        while self._finished and self._finished[0] < end:
            self.counts.ready += 1
            self.counts.ready_tokens += self._group_tokens[heappop(self._finished)]


def ready_groups(finished: Iterable[int], unfinished: Iterable[int], window: int) -> list[int]:
    """Return the ids of the groups that may train, oldest first.

    finished: all groups whose samples are finished. unfinished: the other open groups. window: see `Schedule`.
    """
    oldest = min(unfinished, default=None)
    end = inf if oldest is None or not window else oldest + window
    return sorted(group for group in finished if group < end)
