"""The decisions of each schedule by hand, and what holds for every schedule under arbitrary outputs and settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripted_loop import ScriptedLoop, script
from ulorl.algorithm import Step
from ulorl.rollout.dispatch import StepDispatch, ready_groups
from ulorl.rollout.schedules import OversubscribeSchedule, RefillSchedule, Schedule, SegmentSchedule
from ulorl.types import Sample, Status

L = 10


class Played:
    """A step under a schedule; groups get the next ids. carried: output tokens and versions of unfinished samples."""

    def __init__(
        self,
        schedule: Schedule,
        carried: dict[int, tuple[int, int]] | None = None,
        finished: dict[int, int] | None = None,
        first: int = 0,
    ) -> None:
        tokens, versions = ({id: pair[i] for id, pair in (carried or {}).items()} for i in range(2))
        open_groups = {id // schedule.group: 0 for id in tokens} | (finished or {})
        self.step, self._next = StepDispatch(schedule, L, tokens, open_groups, versions=versions), first

    def enter(self) -> list[tuple[int, int]]:
        """Return the samples that enter now, with their budgets."""
        for _ in range(self.step.new_groups()):
            self.step.open(self._next)
            self._next += 1
        samples, budgets, _ = self.step.admit()
        return list(zip(samples, budgets, strict=True))

    def finish(self, *samples: int, tokens: int = 9) -> None:
        """End samples with `tokens` output tokens each."""
        for sample in samples:
            self.step.ended(sample, tokens, finished=True)


def test_segment_opens_its_prompts_and_ends_when_all_have_their_segment() -> None:
    """N = 2, G = 2, segments of 4, L = 10. Sample 1 is carried with 8 tokens: 2 are left to it."""
    step = Played(SegmentSchedule(prompts=2, group=2, tokens=4), {1: (8, 2)}, {0: 5}, first=1)
    assert step.enter() == [(1, 2), (2, 4), (3, 4), (4, 4), (5, 4)]
    assert step.enter() == []
    step.finish(1, 2, 3, 4)
    assert step.enter() == []
    assert not step.step.over
    step.step.ended(5, 4, finished=False)
    assert step.enter() == []
    assert step.step.over
    assert SegmentSchedule(prompts=2, group=2, tokens=4).trained([7, 2, 4]) == 3  # whatever is finished


def test_segment_finishes_a_sample_before_it_has_too_many_versions() -> None:
    """At most 3 versions: sample 0 has 2, so this step is its last, and it gets all 10 - 4 tokens; sample 1 has 1."""
    step = Played(SegmentSchedule(prompts=0, group=2, tokens=2, max_versions=3), {0: (4, 2), 1: (2, 1)})
    assert step.enter() == [(0, 6), (1, 2)]


def test_oversubscribe_fills_up_to_its_open_groups_and_ends_with_its_batch() -> None:
    """N = 2, factor 1.5: 3 open groups. Group 0 is open with sample 1 left, so 2 groups are new: 5 samples enter."""
    step = Played(OversubscribeSchedule(prompts=2, group=2, factor=1.5), {1: (3, 1)}, {0: 6}, first=1)
    assert step.enter() == [(1, 7), (2, 10), (3, 10), (4, 10), (5, 10)]
    step.finish(2, 3, 4)  # group 1
    assert not step.step.over
    assert step.enter() == []  # nothing enters for what has ended
    step.finish(1)  # group 0
    assert step.step.over  # sample 5 is carried


def test_refill_replaces_what_ends() -> None:
    """N = 2, G = 2, factor 1: 2 x 2 places. A free place opens a group of 2, whose second sample waits for the next."""
    step = Played(RefillSchedule(prompts=2, group=2, factor=1))
    assert step.enter() == [(0, 10), (1, 10), (2, 10), (3, 10)]
    assert step.enter() == []
    step.finish(3)
    assert step.enter() == [(4, 10)]
    step.finish(0)
    assert step.enter() == [(5, 10)]
    step.finish(1, 2)
    assert step.step.over  # groups 0 and 1


def test_refill_with_more_carried_than_places_opens_nothing() -> None:
    """After a run with a larger factor: 6 samples for 4 places enter in their order."""
    carried = {id: (1, 1) for id in range(6)}
    step = Played(RefillSchedule(prompts=2, group=2, factor=1), carried, first=3)
    assert step.enter() == [(0, 9), (1, 9), (2, 9), (3, 9)]
    step.finish(1, 2)
    assert step.enter() == [(4, 9), (5, 9)]
    step.finish(4)
    assert step.enter() == [(6, 10)]


def test_places_and_open_groups_round_up() -> None:
    """1.1 x 3 x 5 = 16.5 samples; 1.1 x 3 = 3.3 groups."""
    assert RefillSchedule(prompts=3, group=5, factor=1.1).places == 17
    assert len(Played(OversubscribeSchedule(prompts=3, group=5, factor=1.1)).enter()) == 4 * 5


def test_a_batch_that_is_ready_ends_the_step_before_it_decodes() -> None:
    """Groups 0 and 1 finished in the decode step that ended the last step; one of them is this step's batch."""
    schedule = RefillSchedule(prompts=1, group=2, factor=1)
    assert Played(schedule, finished={0: 3, 1: 9}).step.over
    assert schedule.trained([3, 9]) == 1


def test_a_step_waits_for_samples_with_too_many_versions_and_trains_what_is_ready() -> None:
    """At most 3 versions: sample 0 has 2, so the step waits for it, although group 1 is the batch of N = 1."""
    schedule = OversubscribeSchedule(prompts=1, group=2, factor=2, max_versions=3)
    step = Played(schedule, {0: (4, 2), 1: (4, 1)}, first=1)
    assert len(step.enter()) == 4
    step.finish(2, 3)
    assert not step.step.over
    step.finish(0)
    assert step.step.over  # sample 1 is carried and has 2 versions then
    assert schedule.trained([4, 5, 6]) == 3  # the batch grows


def test_a_collect_window_makes_short_groups_wait_for_long_ones() -> None:
    """N = 1, W = 2: while group 0 is unfinished, groups 0 and 1 may train. Group 2 is finished first and waits. When
    group 0 is finished, group 1 is the oldest unfinished one: 1 + 2 > 2."""
    step = Played(RefillSchedule(prompts=1, group=1, factor=3, window=2))
    assert [id for id, _ in step.enter()] == [0, 1, 2]
    step.finish(2)
    assert not step.step.over
    assert [id for id, _ in step.enter()] == [3]
    step.finish(3)
    assert not step.step.over
    step.finish(0)
    assert step.step.over
    assert step.step.counts.ready == 2  # groups 0 and 2; group 3 waits for group 1
    assert ready_groups([0, 2, 3], [1], window=2) == [0, 2]
    assert ready_groups([0, 2, 3], [1], window=0) == [0, 2, 3]
    assert ready_groups([3, 2], [], window=1) == [2, 3]


def test_a_window_smaller_than_a_batch_does_not_stop_a_step() -> None:
    """N = 3, W = 1: at most the oldest group may train while it is unfinished, but then none is."""
    step = Played(OversubscribeSchedule(prompts=3, group=1, factor=1, window=1))
    step.enter()
    step.finish(1, 2)
    assert not step.step.over
    step.finish(0)
    assert step.step.over
    assert step.step.counts.ready == 3


def test_a_step_ends_with_its_tokens() -> None:
    """30 tokens: groups of 12 and 9 are too few, with 10 more they are 31. The third is the last that is trained."""
    schedule = RefillSchedule(prompts=1, group=1, factor=4, batch_tokens=30)
    step = Played(schedule, finished={0: 12, 1: 9}, first=2)
    step.enter()
    assert not step.step.over
    step.finish(2, tokens=10)
    assert step.step.over
    assert [schedule.trained(tokens) for tokens in ([12, 9, 10, 50], [30, 1], [31], [29, 1], [])] == [3, 1, 1, 2, 0]


def test_oversubscribe_opens_more_when_all_have_ended_with_too_few_tokens() -> None:
    """N = 2, factor 1, 30 tokens: 2 groups of 8 tokens each are too few, so 2 more are opened."""
    step = Played(OversubscribeSchedule(prompts=2, group=1, factor=1, batch_tokens=30))
    assert [id for id, _ in step.enter()] == [0, 1]
    step.finish(0, 1, tokens=8)
    assert [id for id, _ in step.enter()] == [2, 3]
    step.finish(2, 3, tokens=8)
    assert step.step.over


def test_a_step_without_problems_ends_with_what_is_left() -> None:
    for schedule in (RefillSchedule(prompts=4, group=1, factor=1), OversubscribeSchedule(prompts=4, group=1, factor=1)):
        step = StepDispatch(schedule, L, {7: 0}, {7: 0})
        assert step.admit() == ([7], [10], [0])
        step.ended(7, 3, finished=True)
        assert not step.over  # it could open another group
        assert step.admit() == ([], [], [])
        assert step.over


def test_a_step_ends_beside_an_end_of_a_sample_and_before_the_first_token_of_another() -> None:
    """N = 1, G = 2, factor 2, L = 6, 2 slots. Samples 0 and 1 decode; 2 takes the place of 0 after 2 decode steps. In
    the fourth, sample 1 ends (the batch is in), and so does 2; 3 was not sent."""
    lengths = [2, 4, 2, 3, 1, 5]
    schedule = OversubscribeSchedule(prompts=1, group=2, factor=2)
    loop = ScriptedLoop({id: script(id, n) for id, n in enumerate(lengths)}, schedule, 6, slots=2)
    first = loop.step(["a", "b"])
    assert loop.engine.stats.decode_steps == 4
    assert [(sample.id, len(sample)) for sample in first.segments] == [(0, 2), (1, 4), (2, 2)]
    assert [group.id for group in first.groups] == [0]
    assert [(sample.id, len(sample.segments)) for sample in loop.scheduler.unfinished] == [(3, 0)]
    second = loop.step(["c"])  # sample 3 ends in the third decode step, with group 1; sample 5 has 2 of its 5 tokens
    assert [(sample.id, len(sample)) for sample in second.segments] == [(3, 3), (4, 1), (5, 2)]
    assert [group.id for group in second.groups] == [1]
    assert second.groups[0].members[1].sample.versions.tolist() == [1, 1, 1]
    third = loop.step()
    assert third.groups[0].members[1].sample.versions.tolist() == [1, 1, 2, 2, 2]
    assert [request.max_new_tokens for request in loop.engine.requests] == [6] * 6 + [4]


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="max_versions=1: take one segment"):
        SegmentSchedule(prompts=1, group=1, tokens=1, max_versions=1)
    with pytest.raises(ValueError, match="must be at least 1"):
        RefillSchedule(prompts=1, group=1, factor=0.9)


@dataclass(frozen=True)
class Case:
    """A whole run: `problems` groups whose outputs have `lengths`, one after the other, on an engine of `slots`."""

    schedule: Schedule
    max_tokens: int
    lengths: tuple[int, ...]
    slots: int
    problems: int

    def length(self, sample: int) -> int:
        return self.lengths[sample % len(self.lengths)]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    max_tokens = draw(st.integers(1, 9))
    shared: dict[str, Any] = dict(
        prompts=draw(st.integers(1, 4)), group=draw(st.integers(1, 3)),
        max_versions=draw(st.sampled_from([0, 0, 2, 3])), window=draw(st.sampled_from([0, 0, 1, 2, 5])),
        order=draw(st.sampled_from(["fifo", "longest"])),
    )  # fmt: skip
    kind = draw(st.sampled_from([SegmentSchedule, OversubscribeSchedule, RefillSchedule]))
    if kind is SegmentSchedule:
        schedule: Schedule = SegmentSchedule(tokens=draw(st.integers(1, max_tokens)), **shared)
    else:
        factor, tokens = draw(st.sampled_from([1, 1.25, 1.5, 2, 3])), draw(st.sampled_from([0, 0, 1, 15, 40]))
        schedule = kind(factor=factor, batch_tokens=tokens, **shared)
    lengths = draw(st.lists(st.integers(1, max_tokens + 2), min_size=1, max_size=12))
    return Case(schedule, max_tokens, tuple(lengths), draw(st.sampled_from([0, 1, 3, 8])), draw(st.integers(0, 12)))


class Run:
    """The steps of a case until nothing is left, each checked."""

    def __init__(self, case: Case) -> None:
        self.case, self.schedule = case, case.schedule
        samples = range(case.problems * case.schedule.group)
        scripts = {id: script(id, case.length(id)) for id in samples}
        self.loop = ScriptedLoop(scripts, case.schedule, case.max_tokens, slots=case.slots)
        self.trained: dict[int, Sample] = {}

    def steps(self) -> Iterator[Step]:
        names = iter([f"problem {number}" for number in range(self.case.problems)])
        scheduler, tokens = self.loop.scheduler, self.case.problems * self.schedule.group * self.case.max_tokens
        for _ in range(1 + self.case.problems + tokens):  # a step trains a group or decodes a token
            if scheduler.next_group == self.case.problems and not scheduler.experience.open_groups:
                return
            opened, open_before = scheduler.next_group, len(scheduler.experience.open_groups)
            step = self.loop.step(names)
            self._check_what_entered(step, scheduler.next_group - opened, open_before)
            self._check_what_was_trained(step)
            self._check_places()
            yield step
        raise AssertionError("groups are starved")

    def _check_what_entered(self, step: Step, opened: int, open_before: int) -> None:
        schedule, left = self.schedule, self.case.problems - self.loop.scheduler.next_group
        ready_before = not step.segments
        if isinstance(schedule, SegmentSchedule) and left:
            assert opened == schedule.prompts
        if isinstance(schedule, OversubscribeSchedule) and left and not (ready_before or schedule.batch_tokens):
            assert opened == max(0, ceil(schedule.factor * schedule.prompts) - open_before)
        if schedule.places:
            assert self.loop.engine.most <= schedule.places

    def _check_what_was_trained(self, step: Step) -> None:
        """Each group once and whole, within the window, and as many as a batch has."""
        schedule, open_groups = self.schedule, self.loop.scheduler.experience.open_groups
        unfinished = [id for id, group in open_groups.items() if len(group.members) < schedule.group]
        for group in step.groups:
            ids = [member.sample.id for member in group.members]
            assert ids == list(range(group.id * schedule.group, (group.id + 1) * schedule.group))
            assert not schedule.window or not unfinished or group.id < min(unfinished) + schedule.window
            assert not self.trained.keys() & set(ids)
            self.trained |= {member.sample.id: member.sample for member in group.members}
        exhausted = self.loop.scheduler.next_group == self.case.problems
        if isinstance(schedule, SegmentSchedule) or schedule.max_versions:
            return
        assert isinstance(schedule, OversubscribeSchedule | RefillSchedule)
        tokens = [sum(len(member.sample) for member in group.members) for group in step.groups]
        if not schedule.batch_tokens:
            assert len(tokens) == schedule.prompts or (exhausted and len(tokens) < schedule.prompts)
        else:
            assert sum(tokens[:-1]) < schedule.batch_tokens
            assert sum(tokens) >= schedule.batch_tokens or exhausted

    def _check_places(self) -> None:
        """Every sample is in exactly one place, with the tokens of its script."""
        scheduler = self.loop.scheduler
        assert scheduler.in_flight == 0
        waiting = [m.sample for group in scheduler.experience.open_groups.values() for m in group.members.values()]
        everywhere = [*scheduler.unfinished, *waiting, *self.trained.values()]
        assert sorted(sample.id for sample in everywhere) == list(range(scheduler.next_group * self.schedule.group))
        for sample in everywhere:
            self._check_sample(sample)

    def _check_sample(self, sample: Sample) -> None:
        length, limit = self.case.length(sample.id), self.case.max_tokens
        assert sample.tokens.tolist() == script(sample.id, length)[:limit][: len(sample)]
        finished = Status.COMPLETE if length <= limit else Status.TRUNCATED
        assert sample.status is (finished if len(sample) == min(length, limit) else Status.UNFINISHED)
        assert (np.diff(sample.versions) >= 0).all()
        assert all(len(segment) for segment in sample.segments)
        versions = len(set(sample.versions.tolist()))
        assert not self.schedule.max_versions or versions <= self.schedule.max_versions
        if isinstance(self.schedule, SegmentSchedule) and not self.schedule.max_versions:
            assert len(sample.segments) == ceil(len(sample) / self.schedule.tokens)


@settings(deadline=None, max_examples=250)
@given(cases())
def test_every_schedule_trains_every_group_once_and_whole(case: Case) -> None:
    run = Run(case)
    taken = [_values(step) for step in run.steps()]
    assert len(run.trained) == case.problems * case.schedule.group
    assert taken == [_values(step) for step in Run(case).steps()]  # two runs are equal


def _values(step: Step) -> list[Any]:
    return [
        [(s.id, s.status, len(s), s.versions.tolist(), s.logprobs.tolist()) for s in step.segments],
        [group.id for group in step.groups],
    ]
