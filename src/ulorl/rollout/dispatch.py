"""Applies a schedule to one step: which samples are sent to the engine now, with which budgets, and when the step ends.

It holds ids and lengths, no tokens, so that the planner plays millions of samples with it.
"""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from math import inf

from ulorl.rollout.expected_length import expected_length
from ulorl.rollout.schedules import Schedule, StepCounts
from ulorl.rollout.waiting import FirstInFirstOut, LongestFirst, Waiting

Admitted = tuple[list[int], list[int], list[int]]  # see `StepDispatch.admit`


class StepDispatch:
    """One step under `schedule`.

    max_tokens: the global maximum output length L. carried: the output tokens of each unfinished sample so far, by id,
    in the order in which they enter. open_groups: the output tokens of the finished samples of each group that was not
    released yet, by group id. Sample ids are group id * G + member. versions: how many versions drew the tokens of
    unfinished samples; only those with `max_versions` - 1 or more matter. slots: the samples that the engine decodes at
    once, 0: unknown. visited: returns the mean output tokens of earlier visits of a group's problem, 0 without one.
    next_group: the id of the next new group.

    No more samples are sent than the engine decodes at once, so that their order is decided here, when a slot becomes
    free. First in, first out, carried samples enter before new ones. Longest first, samples that must finish, and those
    of groups that were opened before the last N ones when the step began, enter before all others, in their order. So
    no group waits for ever.
    """

    def __init__(
        self,
        schedule: Schedule,
        max_tokens: int,
        carried: Mapping[int, int],
        open_groups: Mapping[int, int],
        *,
        versions: Mapping[int, int] | None = None,
        slots: int = 0,
        visited: Callable[[int], float] = lambda _: 0.0,
        next_group: int = 0,
    ) -> None:
        self.counts = StepCounts(open=len(open_groups), waiting=len(carried))
        self._schedule, self._max_tokens = schedule, max_tokens
        self._segment = schedule.segment_tokens or max_tokens
        self._visited = visited
        self._nothing_left = False
        self._group_tokens = dict(open_groups)  # of finished samples, by group
        # unfinished samples of each group that has some
        self._left: dict[int, int] = Counter(sample // schedule.group for sample in carried)
        most = schedule.max_versions - 1 if schedule.max_versions else inf
        self._must_finish = {sample for sample, count in (versions or {}).items() if count >= most}
        self.counts.must_finish = len(self._must_finish)
        self._first = FirstInFirstOut()  # of those that wait, the samples that enter before all others
        self._waiting: Waiting = FirstInFirstOut()
        if schedule.order == "longest":
            late = (next_group - schedule.prompts) * schedule.group  # the samples with smaller ids
            first = {id: n for id, n in carried.items() if id < late or id in self._must_finish}
            carried = {id: n for id, n in carried.items() if id not in first}
            self._first.put(first)
            self._waiting = LongestFirst(self._expected_length, max_tokens, schedule.group)
        self._waiting.put(carried)
        self._places = min(schedule.places or sys.maxsize, slots or sys.maxsize)
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
        self._waiting.put(dict.fromkeys(range(group * size, (group + 1) * size), 0))

    def admit(self) -> Admitted:
        """Return the samples to send to the engine now: ids, budgets in tokens, and how many of these tokens each is
        expected to need, 0 where the order of admission does not ask for that."""
        counts = self.counts
        number = self._places - counts.in_flight
        samples, tokens, _ = self._first.take(number)
        expected = self._waiting.expected(samples, tokens) if samples else []
        others, others_tokens, others_expected = self._waiting.take(number - len(samples))
        samples += others
        tokens += others_tokens
        expected += others_expected
        counts.waiting -= len(samples)
        counts.in_flight += len(samples)
        counts.beginning = False
        self._nothing_left = not counts.in_flight
        budgets = self._budgets(samples, tokens)
        return samples, budgets, list(map(min, expected, budgets))

    def ended(self, sample: int, tokens: int, *, finished: bool) -> None:
        """Take note that the engine returned a sample, which has `tokens` output tokens now."""
        self.counts.in_flight -= 1
        if sample in self._must_finish:
            self._must_finish.remove(sample)
            self.counts.must_finish -= 1
        if not finished:
            return
        group = sample // self._schedule.group
        self._group_tokens[group] += tokens
        self._left[group] -= 1
        if not self._left[group]:
            del self._left[group]
            heappush(self._finished, group)
            self._count_ready()
        else:
            self._waiting.changed(group)

    def _expected_length(self, group: int) -> float:
        finished, before = self._schedule.group - self._left[group], self._visited(group)
        return expected_length(self._group_tokens[group], finished, before, self._max_tokens)

    def _budgets(self, samples: Sequence[int], tokens: Sequence[int]) -> list[int]:
        """Return the budget of each sample: a segment, or what is left where that is less or the sample must finish."""
        segment, must_finish = self._segment, self._must_finish
        left = [self._max_tokens - present for present in tokens]
        return [n if n < segment or sample in must_finish else segment for sample, n in zip(samples, left, strict=True)]

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
