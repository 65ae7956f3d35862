"""The order of admission: what is expected of a sample, by hand, and which sample enters when a slot becomes free."""

from __future__ import annotations

import json
from itertools import cycle, islice
from math import ceil

import numpy as np
import pytest

from scripted_loop import ScriptedLoop, script
from ulorl.rollout import pool_io
from ulorl.rollout.dispatch import StepDispatch
from ulorl.rollout.expected_length import ExpectedLengths, expected_length, expected_rest, expected_rests
from ulorl.rollout.pool_io import Pools
from ulorl.rollout.pools import ExperiencePool, UnfinishedPool
from ulorl.rollout.scheduler import Scheduler
from ulorl.rollout.schedules import OversubscribeSchedule, RefillSchedule, Schedule, SegmentSchedule
from ulorl.rollout.waiting import LongestFirst
from ulorl.types import Sampling

L = 100
SEGMENT = SegmentSchedule(prompts=3, group=2, tokens=L, order="longest")


@pytest.mark.parametrize(
    ("present", "tokens", "finished", "before", "length", "rest"),
    [
        (0, 0, 0, 0, 100, 100),  # nothing is known: L
        (0, 0, 0, 30, 30, 30),
        (0, 90, 2, 0, 45, 45),
        (0, 90, 2, 30, 40, 40),  # (90 + 30) / 3
        (19, 90, 2, 30, 40, 21),
        (25, 90, 2, 30, 40, 25),  # half-way at most
        (60, 90, 2, 30, 40, 40),  # but not longer than L
    ],
)
def test_what_is_expected_of_a_sample(
    present: int, tokens: int, finished: int, before: float, length: float, rest: float
) -> None:
    assert expected_length(tokens, finished, before, L) == length
    assert expected_rest(present, length, L) == rest
    assert expected_rests(np.array([present]), np.array([length]), L).tolist() == [rest]


def test_the_last_visit_of_a_problem_replaces_the_one_before() -> None:
    lengths = ExpectedLengths()
    assert lengths.mean("a") == 0
    lengths.learn("a", 2 + 4, 2)
    lengths.learn("b", 10 + 20, 2)
    assert (lengths.mean("a"), lengths.mean("b"), lengths.mean("new")) == (3, 15, 9)  # 36 / 4
    lengths.learn("a", 5 + 9, 2)
    assert (lengths.mean("a"), lengths.mean("new")) == (7, 11)  # 44 / 4
    kept = Pools(UnfinishedPool(), ExperiencePool(2), lengths)
    meta, arrays = pool_io.dump(kept)
    assert pool_io.read(json.loads(json.dumps(meta)), arrays, 2).lengths.visits == {"a": (14, 2), "b": (30, 2)}
    copy = kept.copy()
    lengths.learn("c", 1 + 1, 2)
    assert copy.lengths.mean("new") == 11
    del meta["visits"]  # as in older checkpoints
    assert pool_io.read(meta, arrays, 2).lengths.visits == {}


def test_waiting_samples_leave_by_what_is_expected_of_them_now() -> None:
    """Any order of moves, against the definition: the largest of all, then the first member, then the first group."""
    random = np.random.default_rng(0)
    lengths = random.integers(1, 63, size=100) / 7  # expected of each group
    waiting, tokens = LongestFirst(lambda group: float(lengths[group]), 9, group=3), dict[int, int]()
    for sample in range(300):
        tokens[sample] = int(random.integers(4))
        waiting.put({sample: tokens[sample]})
        for group in (sample // 3, int(random.integers(1 + sample // 3))):  # a sibling has finished
            lengths[group] = random.integers(1, 63) / 7
            waiting.changed(group)
            assert waiting.take(0) == ([], [], [])
        while tokens and random.random() < 0.5:
            rest = {one: expected_rest(present, lengths[one // 3], 9) for one, present in tokens.items()}
            wanted = sorted(rest, key=lambda one: (-rest[one], one % 3, one // 3))
            wanted = wanted[: random.integers(1, 1 + (len(wanted) if random.random() < 0.1 else 3))]
            present, rests = [tokens[one] for one in wanted], [ceil(rest[one]) for one in wanted]
            assert waiting.take(len(wanted)) == (wanted, present, rests)
            for one in wanted:
                del tokens[one]
    assert sorted(waiting.take(len(tokens) + 1)[0]) == sorted(tokens)
    assert waiting.take(1) == ([], [], [])


def enter(step: StepDispatch) -> list[int]:
    return step.admit()[0]


def test_each_free_slot_goes_to_the_longest_by_all_that_is_known() -> None:
    """G = 2, 3 slots; nothing is known of groups 0 to 2, so their first members enter. Sample 2 ends with 10 tokens:
    10 are expected of 3, and 100 of 1 and 5. Then 4 ends with 20, and 1 is the longest: then 5, then 3."""
    step = StepDispatch(SEGMENT, L, {}, {}, slots=3)
    for new in range(3):
        step.open(new)
    assert enter(step) == [0, 2, 4]
    step.ended(2, 10, finished=True)
    assert enter(step) == [1]
    step.ended(4, 20, finished=True)
    assert step.admit() == ([5], [100], [20])
    step.ended(0, 100, finished=True)
    assert step.admit() == ([3], [100], [10])
    assert step.counts.in_flight == 3
    assert step.counts.waiting == 0


def test_earlier_visits_and_carried_lengths_order_the_first_samples() -> None:
    """Expected to lack: sample 1 (30 + 5) / 2 - 8 = 9.5; 3, with 20 of 30 tokens, half-way: 20; 4 and 5: 12."""
    visits = {0: 5.0, 1: 30.0, 2: 12.0}
    step = StepDispatch(SEGMENT, L, {1: 8, 3: 20}, {0: 30, 1: 0}, slots=9, visited=visits.get)  # type: ignore[arg-type]
    step.open(2)
    assert step.admit() == ([3, 4, 5, 1], [80, 100, 100, 92], [20, 12, 12, 10])


def test_samples_that_must_finish_and_old_groups_come_first() -> None:
    """N = 1. Group 6 is next, so groups 4 and older are late, and sample 11 must finish: they enter by their ids;
    then 13, which is expected to have (60 + 60) / 2 tokens, then 10 with 50."""
    schedule = RefillSchedule(prompts=1, group=2, factor=9, max_versions=2, order="longest")
    carried = {id: int(id == 11) for id in (2, 6, 7, 10, 11, 13)}
    visits = {5: 50.0, 6: 60.0}
    open_groups = {1: 1, 3: 0, 5: 0, 6: 60}
    step = StepDispatch(
        schedule, L, carried, open_groups, versions=carried, slots=6, next_group=6,
        visited=lambda group: visits.get(group, 0.0),
    )  # fmt: skip
    assert enter(step) == [2, 6, 7, 11, 13, 10]


def test_first_in_first_out_a_carried_sample_gets_a_slot_before_a_new_one() -> None:
    """A fleet gives the request with the most expected tokens a slot first, and a new sample is expected to have more
    than a carried one: if all were sent at once, carried ones would wait as long as new ones come."""
    schedule = RefillSchedule(prompts=1, group=2, factor=3.0, max_versions=2)
    carried = {0: 60, 1: 50, 3: 40}
    step = StepDispatch(schedule, L, carried, {0: 0, 1: 9}, versions=dict.fromkeys(carried, 1), slots=2)
    for group in range(2, 2 + step.new_groups()):
        step.open(group)
    assert enter(step) == [0, 1]
    step.ended(0, 70, finished=True)
    assert enter(step) == [3]
    step.ended(1, 60, finished=True)
    assert enter(step) == [4]


@pytest.mark.parametrize("kind", [OversubscribeSchedule, RefillSchedule])
def test_a_short_group_is_not_overtaken_for_ever(kind: type[OversubscribeSchedule | RefillSchedule]) -> None:
    """N = 1, G = 2, 2 slots. Problem `short` is known for 1 token, all others for 4, and a step ends with each of them.
    `short` is group 1. In step 3, the last N groups are group 2, so group 1 enters first."""
    schedule = kind(prompts=1, group=2, factor=2, order="longest")
    length = lambda sample: 1 if sample // 2 == 1 else 4  # noqa: E731
    loop = ScriptedLoop({id: script(id, length(id)) for id in range(40)}, schedule, 8, slots=2)
    loop.scheduler.lengths.learn("short", 1 + 1, 2)
    loop.scheduler.lengths.learn("long", 4 + 4, 2)
    names = iter(["long", "short", *["long"] * 18])
    trained = [[g.id for g in loop.step(islice(names, 4)).groups] for _ in range(4)]
    assert trained == [[0], [2], [1], [3]]


@pytest.mark.parametrize("schedule", [
    SegmentSchedule(prompts=4, group=2, tokens=6, order="longest"),
    OversubscribeSchedule(prompts=4, group=2, factor=2, order="longest"),
    RefillSchedule(prompts=4, group=2, factor=1, order="longest"),
])  # fmt: skip
def test_a_resumed_run_asks_for_the_same_in_the_same_order(schedule: Schedule) -> None:
    """8 steps over 5 problems that come again, 3 slots; one run is restored from its checkpoint after every step."""
    lengths = np.random.default_rng(3).integers(1, 20, 200)
    loops = [ScriptedLoop(lambda id: script(id, int(lengths[id])), schedule, 20, slots=3) for _ in range(2)]
    names = [cycle("abcde") for _ in range(2)]
    for _ in range(8):
        for loop, problems in zip(loops, names, strict=True):
            loop.step(problems)
        left = loops[1].scheduler
        meta, arrays = pool_io.dump(Pools(left.unfinished, left.experience, left.lengths))
        pools = pool_io.read(json.loads(json.dumps(meta)), arrays, 2)
        loops[1].scheduler = Scheduler(
            schedule, max_tokens=20, sampling=Sampling(), seed=1, unfinished=pools.unfinished,
            experience=pools.experience, lengths=pools.lengths, next_group=left.next_group, slots=3,
        )  # fmt: skip
    straight, resumed = (
        [(r.sample_id, r.length, r.max_new_tokens, r.expected_tokens) for r in loop.engine.requests] for loop in loops
    )
    assert straight == resumed
    assert len(loops[0].scheduler.lengths.visits) == 5
    asked = [id for id, *_ in straight]
    assert asked != sorted(asked)
