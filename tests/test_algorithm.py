"""Algorithm 1, followed by hand with the scripted engine.

L = 6 output tokens, k = 3 segments of 2 tokens, G = 2. EOS is 0; every other token is the sample's own. The guarantees
are numbered; each test names those it holds.

 1. a step decodes at most one segment of a sample
 2. EOS completes a sample, also exactly on a segment boundary and exactly at L
 3. a full segment below L goes to the unfinished pool and continues next step from all of its tokens, newest weights
 4. L reached without EOS truncates: reward 0 without asking the reward
 5. the remaining budget shrinks; it is never granted again
 6. a group is released once, whole, when its last member is finished; the update takes whatever is ready
 7. every token carries the version and the log-prob it was generated with
 8. k = 1 is the synchronous loop: nothing is ever carried
 9. the order in which segments end changes nothing: every result is in the order of the sample ids

Under other schedules than the paper's, 1 to 7 hold, and 9 but for what a step trains: that depends on which groups end
first, so with several engines on their clocks.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from chaos_engine import ChaosEngine
from scripted_loop import EOS, PROMPT, ScriptedLoop
from ulorl.algorithm import Step
from ulorl.engines.fleet import EngineFleet, FleetSettings
from ulorl.engines.scripted import ScriptedEngine
from ulorl.engines.segment_checks import SegmentChecks
from ulorl.engines.thread_worker import ThreadWorker
from ulorl.rollout import pool_io
from ulorl.rollout.pool_io import Pools
from ulorl.rollout.schedules import OversubscribeSchedule, RefillSchedule, Schedule, SegmentSchedule
from ulorl.types import Finish, Group, Problem, Sample, Sampling, Segment, Status


def loop_of(scripts: dict[int, list[int]], segments: int = 3, fleet: EngineFleet | None = None) -> ScriptedLoop:
    """L = 6, G = 2 and the paper's schedule."""
    return ScriptedLoop(scripts, SegmentSchedule(prompts=100, group=2, tokens=6 // segments), 6, fleet=fleet)


def by_id(samples: Sequence[Sample]) -> dict[int, Sample]:
    return {s.id: s for s in samples}


def test_three_ends_of_a_segment_by_hand() -> None:
    """Guarantees 1 to 7. Outputs, cut into segments of 2:

    sample 0  1 EOS                    EOS inside segment 1... exactly on its boundary: 2 tokens
    sample 1  1 1 | 1 EOS              EOS on the boundary of segment 2
    sample 2  2 2 | 2 2 | 2 EOS        EOS exactly at L
    sample 3  3 3 | 3 3 | 3 3 (3...)   L reached: truncated
    """
    loop = loop_of({0: [1, EOS], 1: [1, 1, 1, EOS], 2: [2, 2, 2, 2, 2, EOS], 3: [3] * 9})

    first = loop.step(["a", "b"])
    assert {s.id: (len(s), s.status) for s in first.segments} == {
        0: (2, Status.COMPLETE),
        1: (2, Status.UNFINISHED),
        2: (2, Status.UNFINISHED),
        3: (2, Status.UNFINISHED),
    }
    assert [s.sample.id for s in first.finished] == [0]
    assert first.groups == ()  # sample 0 waits for its sibling
    assert len(loop.scheduler.experience) == 1
    assert [s.id for s in loop.scheduler.unfinished] == [1, 2, 3]
    assert loop.engine.version == 0  # no group, no update, no new version

    second = loop.step()
    assert by_id(second.segments)[1].status is Status.COMPLETE
    assert [g.id for g in second.groups] == [0]  # released the moment sample 1 is complete, group 1 does not hold it up
    assert [m.sample.id for m in second.groups[0].members] == [0, 1]
    assert loop.engine.version == loop.learner.version == 1

    third = loop.step()
    assert {s.id: (len(s), s.status) for s in third.segments} == {2: (6, Status.COMPLETE), 3: (6, Status.TRUNCATED)}
    assert [m.reward for m in third.groups[0].members] == [1.0, 0.0]
    assert loop.learner.seen == [[], [0], [1]]

    # 7: samples 2 and 3 began under version 0 and ended under version 1
    for member in third.groups[0].members:
        assert member.sample.versions.tolist() == [0, 0, 0, 0, 1, 1]
        assert len(member.sample.logprobs) == len(member.sample.tokens) == 6
    assert third.groups[0].members[0].sample.tokens.tolist() == [2, 2, 2, 2, 2, EOS]

    # nothing is left anywhere
    fourth = loop.step()
    assert fourth.segments == () == fourth.groups
    assert len(loop.scheduler.unfinished) == len(loop.scheduler.experience) == loop.scheduler.in_flight == 0


def test_logprobs_are_those_of_the_generating_version() -> None:
    """Guarantee 7: each token's recorded log-prob equals what the engine says it drew it with."""
    loop = loop_of({0: [1, EOS], 1: [1, EOS], 2: [2] * 5 + [EOS], 3: [3] * 5 + [EOS]})
    loop.step(["a", "b"])  # group 0 done: version 1
    loop.step()
    third = loop.step()
    sample = third.groups[0].members[0].sample
    assert sample.versions.tolist() == [0, 0, 1, 1, 1, 1]
    expected = [loop.engine.logprob(version, index) for index, version in enumerate(sample.versions)]
    assert sample.logprobs.tolist() == pytest.approx(expected)


def test_a_carried_sample_continues_from_its_tokens_with_what_is_left() -> None:
    """Guarantees 3 and 5: L = 5, segments of 5 // 1... here L = 6 and 2 a segment: budgets 2, 2, 2, prefixes grow."""
    loop = loop_of({0: [5] * 9, 1: [6, EOS]})
    loop.step(["a"])
    loop.step()
    loop.step()
    asked = [r for r in loop.engine.requests if r.sample_id == 0]
    assert [r.max_new_tokens for r in asked] == [2, 2, 2]
    assert [r.tokens.tolist() for r in asked] == [[7, 8, 9], [7, 8, 9, 5, 5], [7, 8, 9, 5, 5, 5, 5]]
    assert [r.output_length for r in asked] == [0, 2, 4]
    assert len({r.seed for r in asked}) == 1  # one stream of draws a sample, indexed by position
    assert sum(r.max_new_tokens for r in asked) == 6  # never more than L in all


def test_a_partial_segment_shrinks_the_last_budget() -> None:
    """Guarantee 5 with an aborted segment: 1 token of 2 came back, so the budgets are then 2, 2, 1."""
    loop = loop_of({0: [5] * 9, 1: [6, EOS]})
    loop.scheduler.begin_step([(Problem("a", "a"), PROMPT)])
    requests = loop.scheduler.next_requests() or []
    one = np.ones(1)
    joined = loop.scheduler.end_segment(
        Segment(0, one.astype(np.int32), one.astype(np.float32), one.astype(np.int32), Finish.ABORT)
    )
    assert joined.status is Status.UNFINISHED
    two = np.array([6, EOS], np.int32)
    loop.scheduler.end_segment(Segment(1, two, two.astype(np.float32), two, Finish.EOS))
    assert [r.max_new_tokens for r in requests] == [2, 2]
    budgets = []
    while len(loop.scheduler.unfinished):
        loop.scheduler.begin_step([])
        for request in loop.scheduler.next_requests() or []:
            budgets.append(request.max_new_tokens)
            n = np.full(request.max_new_tokens, 5)
            joined = loop.scheduler.end_segment(
                Segment(0, n.astype(np.int32), n.astype(np.float32), n.astype(np.int32), Finish.LENGTH)
            )
    assert budgets == [2, 2, 1]
    assert joined.status is Status.TRUNCATED


def test_one_segment_is_the_synchronous_loop() -> None:
    """Guarantee 8."""
    loop = loop_of({0: [1, EOS], 1: [1] * 9, 2: [2] * 5 + [EOS], 3: [3, 3, EOS]}, segments=1)
    step = loop.step(["a", "b"])
    assert {s.id: s.status for s in step.segments} == {
        0: Status.COMPLETE,
        1: Status.TRUNCATED,
        2: Status.COMPLETE,
        3: Status.COMPLETE,
    }
    assert [g.id for g in step.groups] == [0, 1]
    assert len(loop.scheduler.unfinished) == 0
    assert all(len(m.sample.segments) == 1 for g in step.groups for m in g.members)


def test_new_prompts_enter_with_carried_samples() -> None:
    """Guarantees 3 and 6: the in-flight set is the unfinished pool plus the constant prompt batch."""
    loop = loop_of({i: [9] * 5 + [EOS] for i in range(6)})
    in_flight = [len(loop.step([name]).segments) for name in "abc"]
    assert in_flight == [2, 4, 6]  # 1 problem x G = 2 new ones a step, for 3 steps each
    assert [r.sample_id for r in loop.engine.requests[-6:]] == [0, 1, 2, 3, 4, 5]  # carried first, in the order of ids
    assert loop.learner.seen == [[], [], [0]]


SCRIPTS = {id: [1 + id] * (id * 5 % 8) + [EOS] for id in range(8)}  # the outputs have 1 to 8 tokens


SHARED: dict[str, Any] = {"prompts": 2, "group": 2}
SCHEDULES = [
    SegmentSchedule(tokens=2, max_versions=2, **SHARED),
    SegmentSchedule(tokens=2, window=1, **SHARED),
    OversubscribeSchedule(factor=1.5, **SHARED),
    RefillSchedule(factor=1.5, max_versions=3, **SHARED),
    RefillSchedule(factor=1, window=2, batch_tokens=10, **SHARED),
]


def steps_to_the_end(loop: ScriptedLoop) -> Iterator[Step]:
    names = iter("abcd")
    while loop.scheduler.next_group < 4 or loop.scheduler.experience.open_groups:
        yield loop.step(names)


def check_trained(groups: Sequence[Group]) -> None:
    """Guarantees 2, 4, 6 and 7 of all groups of SCRIPTS."""
    assert sorted(group.id for group in groups) == [0, 1, 2, 3]
    for group in groups:
        assert [member.sample.id for member in group.members] == [2 * group.id, 2 * group.id + 1]
        for member in group.members:
            sample, script = member.sample, SCRIPTS[member.sample.id]
            assert sample.tokens.tolist() == script[:6]
            assert sample.status is (Status.COMPLETE if len(script) <= 6 else Status.TRUNCATED)
            assert member.reward == (1.0 if len(script) <= 6 else 0.0)
            drawn = [ScriptedEngine.logprob(version, index) for index, version in enumerate(sample.versions)]
            assert sample.logprobs.tolist() == pytest.approx(drawn)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_every_schedule_keeps_the_guarantees(schedule: Schedule) -> None:
    """Guarantees 1 to 7 and 9."""
    loop = ScriptedLoop(SCRIPTS, schedule, 6, slots=3)
    groups, lengths = list[Group](), dict[int, int]()
    for version, step in enumerate(steps_to_the_end(loop)):
        ids = [sample.id for sample in step.segments]
        assert ids == sorted(set(ids))  # 1 and 9
        asked = {request.sample_id: request for request in loop.engine.requests}
        loop.engine.requests.clear()
        for sample in step.segments:
            before, segment = lengths.get(sample.id, 0), sample.segments[-1]
            assert asked[sample.id].tokens.tolist() == [*PROMPT, *SCRIPTS[sample.id][:before]]  # 3
            assert len(sample) - before == len(segment) <= asked[sample.id].max_new_tokens <= 6 - before  # 5
            assert set(segment.versions.tolist()) == {sum(map(bool, loop.learner.seen[:version]))}  # 3 and 7
            lengths[sample.id] = len(sample)
        groups += step.groups
    check_trained(groups)


@pytest.mark.parametrize("chance", [0, 0.15], ids=["", "that fail"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_every_schedule_trains_the_same_samples_with_several_engines(schedule: Schedule, chance: float) -> None:
    """Guarantees 2, 4, 6 and 7. What a fault lost is decoded again, so other groups may end first; also then, none is
    lost or trained twice."""
    with closing(fleet_of(3, chance)) as fleet:
        loop = ScriptedLoop(SCRIPTS, schedule, 6, fleet=fleet)
        check_trained([group for step in steps_to_the_end(loop) for group in step.groups])
        assert bool(chance) == bool(fleet.stats.faults)


def fleet_of(engines: int, chance: float = 0.0) -> EngineFleet:
    """A fleet of engines of one, two, ... slots, so that segments end in another order for each number of engines.
    Calls of an engine fail with `chance`."""
    draws = random.Random(4)

    def worker(index: int) -> ThreadWorker:
        engine = ScriptedEngine(SCRIPTS, EOS, slots=1 + index)
        return ThreadWorker(ChaosEngine(engine, draws, chance, ("raises", "twice", "foreign", "token")))

    return EngineFleet(
        [worker(index) for index in range(engines)],
        remake=worker,
        checks=SegmentChecks([EOS], 20, Sampling()),
        settings=FleetSettings(slots=3, group=2, max_faults=1000, pause=0.001),
        on_fault=lambda _: None,
    )


def values(sample: Sample) -> tuple[Any, ...]:
    return sample.id, sample.status, sample.tokens.tolist(), sample.logprobs.tolist(), sample.versions.tolist()


def everything(loop: ScriptedLoop, step: Step) -> list[Any]:
    """The result of a step and both pools after it, as values."""
    meta, arrays = pool_io.dump(Pools(loop.scheduler.unfinished, loop.scheduler.experience))
    return [
        [values(sample) for sample in step.segments],
        [(values(scored.sample), scored.reward) for scored in step.finished],
        [(group.id, [values(member.sample) for member in group.members]) for group in step.groups],
        meta,
        {name: array.tolist() for name, array in arrays.items()},
    ]


@pytest.mark.parametrize("engines", [1, 2, 3, 5])
def test_a_step_does_not_depend_on_the_number_of_engines(engines: int) -> None:
    """Guarantee 9."""
    alone, fleet = loop_of(SCRIPTS), fleet_of(engines)
    with closing(fleet):
        many = loop_of(SCRIPTS, fleet=fleet)
        for names in ("abc", "d", "", "", ""):
            assert everything(many, many.step(names)) == everything(alone, alone.step(names))
    assert len(alone.scheduler.unfinished) == len(alone.scheduler.experience) == 0
    assert alone.learner.seen == many.learner.seen


def test_a_step_returns_samples_in_the_order_of_their_ids() -> None:
    """Guarantee 9: sample 3 has one token, so it ends before the others."""
    loop = loop_of({0: [1, 1, 1, EOS], 1: [1, EOS], 2: [1, 1, 1, EOS], 3: [EOS]})
    step = loop.step(["a", "b"])
    assert [sample.id for sample in step.segments] == [0, 1, 2, 3]
    assert [scored.sample.id for scored in step.finished] == [1, 3]


def test_segments_that_break_their_contract_are_refused() -> None:
    loop = loop_of({0: [1, EOS], 1: [1, EOS]})
    loop.scheduler.begin_step([(Problem("a", "a"), PROMPT)])
    loop.scheduler.next_requests()
    three = np.ones(3)
    with pytest.raises(ValueError, match="budget was 2"):
        loop.scheduler.end_segment(
            Segment(0, three.astype(np.int32), three.astype(np.float32), three.astype(np.int32), Finish.LENGTH)
        )
    with pytest.raises(ValueError, match="1 of 2 tokens"):
        loop.scheduler.end_segment(
            Segment(
                0, three[:1].astype(np.int32), three[:1].astype(np.float32), three[:1].astype(np.int32), Finish.LENGTH
            )
        )
    with pytest.raises(ValueError, match="not in flight"):
        loop.scheduler.end_segment(Segment(99, *(np.empty(0, t) for t in (np.int32, np.float32, np.int32)), Finish.EOS))
    with pytest.raises(ValueError, match="3 tokens, 2 log-probs"):
        Segment(0, three.astype(np.int32), three[:2].astype(np.float32), three.astype(np.int32), Finish.EOS)
    assert loop.scheduler.in_flight == 2  # a refused segment changes nothing
    with pytest.raises(RuntimeError, match="in flight"):
        loop.scheduler.begin_step([])
