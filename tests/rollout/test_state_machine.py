"""Any order of moves over scheduler, pools, engine and checkpoints, under every schedule: steps begin and end, samples
enter, tokens are drawn, steps fail, requests are stopped, groups leave, weights change, the run is saved, and crashes
at any point. After every move:

 1. every sample is in exactly one place: unfinished, waiting for siblings, kept for the update, or trained; those in
    flight are unfinished
 2. a group is released once, whole, with finished samples only
 3. a sample's remaining budget never grows, and no request asks for more than it
 4. versions never decrease along a sample, and none is newer than the weights
 5. tokens, log-probs and versions of a sample have one length, and are those its engine draws
 6. order is deterministic: a second world that makes the same moves holds the same state
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from safetensors.numpy import load, save

from ulorl.engines.retrying import RetryingEngine
from ulorl.engines.scripted import FaultyEngine, ScriptedEngine
from ulorl.engines.segment_checks import SegmentChecks
from ulorl.rng import sample_seed
from ulorl.rollout import pool_io
from ulorl.rollout.pool_io import Pools
from ulorl.rollout.pools import ExperiencePool, UnfinishedPool
from ulorl.rollout.scheduler import Scheduler
from ulorl.rollout.schedules import OversubscribeSchedule, RefillSchedule, Schedule, SegmentSchedule
from ulorl.types import Finish, Group, Problem, Request, Sample, Sampling, Scored, Segment, Status

EOS, LIMIT, SEGMENT, GROUP, SLOTS = 0, 7, 3, 2, 3  # L = 7 in segments of 3: the last one is 1 token
PROMPT = np.array([5, 6], np.int32)
STEPS = {"prompts": 2, "group": GROUP}
SCHEDULES = [
    SegmentSchedule(tokens=SEGMENT, **STEPS),
    SegmentSchedule(tokens=SEGMENT, max_versions=2, window=2, **STEPS),
    OversubscribeSchedule(factor=1.5, order="longest", **STEPS),
    OversubscribeSchedule(factor=2, max_versions=2, batch_tokens=12, **STEPS),
    RefillSchedule(factor=1, **STEPS),
    RefillSchedule(factor=1.3, window=2, batch_tokens=15, order="longest", **STEPS),
    RefillSchedule(factor=2, max_versions=3, **STEPS),
]


def script(id: int) -> list[int]:
    """1 to 10 tokens, the last one EOS: some are truncated, some end on a boundary."""
    return [id + 1] * (id * 7 % 10) + [EOS]


def unscored(id: int) -> bool:
    return id % 5 == 3


def raised(_: list[Segment]) -> list[Segment]:
    raise OSError("gone")


def changed(name: str, value: Callable[[Any], Any]) -> Callable[[list[Segment]], list[Segment]]:
    def alter(segments: list[Segment]) -> list[Segment]:
        for segment in segments[-1:]:
            object.__setattr__(segment, name, value(getattr(segment, name)))
        return segments

    return alter


FAULTS: dict[str, Callable[[list[Segment]], list[Segment]]] = {
    "raises": raised,
    "loses": lambda segments: segments[1:],
    "repeats": lambda segments: segments + segments[:1],
    "is NaN": changed("logprobs", lambda x: x * np.nan),
    "is of an older version": changed("versions", lambda x: x - 1),
    "is too long": changed("tokens", lambda x: np.append(x, 9)),
}


class World:
    """A run without a model: what `run.py` and `algorithm.py` move, a move at a time."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.version = 0
        self.faults: list[str] = []
        self.trained: list[Group] = []
        self.budgets: dict[int, int] = {}  # of each sample, when it was last given out
        self.asked: list[Request] = []
        self._start(Pools(UnfinishedPool(), ExperiencePool(GROUP)), next_group=0)
        self.saved = self._saved()

    def _start(self, pools: Pools, next_group: int) -> None:
        self.over = True
        self.scheduler = Scheduler(
            self.schedule, max_tokens=LIMIT, sampling=Sampling(), seed=1,
            unfinished=pools.unfinished, experience=pools.experience,
            lengths=pools.lengths, next_group=next_group, slots=SLOTS,
        )  # fmt: skip
        self.engine = RetryingEngine(
            self._engine(), remake=self._engine, checks=SegmentChecks([EOS], 10_000, Sampling()),
            version=self.version, max_faults=10_000, on_fault=lambda _: None,
        )  # fmt: skip

    def _engine(self) -> FaultyEngine:
        engine = ScriptedEngine(script, EOS, self.version, slots=SLOTS)
        return FaultyEngine(engine, dict.fromkeys(range(10_000), self._disturbed))

    def _disturbed(self, segments: list[Segment]) -> list[Segment]:
        """The faults planned strike one after the other, as soon as there is a segment to damage."""
        return FAULTS[self.faults.pop(0)](segments) if segments and self.faults else segments

    def begin(self, problems: int) -> None:
        first = self.scheduler.next_group
        new = [(Problem(str(first + i), "?"), PROMPT) for i in range(problems)]
        self.scheduler.begin_step(new)
        self.over = False
        self.enter()

    def enter(self) -> None:
        requests = self.scheduler.next_requests()
        self.asked, self.over = requests or [], requests is None
        for request in self.asked:
            self.engine.add(request)
        if self.over:
            self.stop()

    def step(self) -> None:
        for segment in self.engine.step():
            self._end(segment)

    def stop(self) -> None:
        for segment in self.engine.abort():
            self._end(segment)

    def _end(self, segment: Segment) -> None:
        sample = self.scheduler.end_segment(segment)
        if sample.status is not Status.UNFINISHED:
            failed = unscored(sample.id)
            self.scheduler.experience.add(
                Scored(sample, None if failed else 1.0, f"text {sample.id}", "OSError" if failed else "")
            )

    def release(self) -> None:
        self.scheduler.experience.keep(self.scheduler.release())

    def train(self) -> None:
        self.trained += self.scheduler.experience.take_released()

    def update(self) -> None:
        self.version += 1
        self.engine.load_weights(iter(()), self.version)

    def save(self) -> None:
        self.saved = self._saved()

    def _saved(self) -> tuple[str, bytes]:
        pools = Pools(self.scheduler.unfinished, self.scheduler.experience, self.scheduler.lengths)
        meta, arrays = pool_io.dump(pools)
        counters = {"version": self.version, "next_group": self.scheduler.next_group, "trained": len(self.trained)}
        return json.dumps({**meta, **counters, "budgets": list(self.budgets.items())}), save(arrays)

    def crash(self) -> None:
        """Everything in memory is gone; the run resumes from what was saved."""
        state = json.loads(self.saved[0])
        self.engine.close()
        self.version, self.faults = state["version"], []
        self.budgets = {id: budget for id, budget in state["budgets"]}
        del self.trained[state["trained"] :]
        self.asked = []
        self._start(pool_io.read(state, load(self.saved[1]), GROUP), state["next_group"])

    def end_step(self) -> None:
        while not self.over:
            self.step()
            self.enter()

    def samples(self) -> dict[str, list[Sample]]:
        """Every sample by where it is."""
        groups = self.scheduler.experience.open_groups.values()
        return {
            "unfinished": list(self.scheduler.unfinished),
            "waiting": [scored.sample for group in groups for scored in group.members.values()],
            "kept": [m.sample for group in self.scheduler.experience.released for m in group.members],
            "trained": [member.sample for group in self.trained for member in group.members],
        }


class Machine(RuleBasedStateMachine):
    @initialize(schedule=st.sampled_from(SCHEDULES))
    def two_worlds(self, schedule: Schedule) -> None:
        self.worlds = World(schedule), World(schedule)

    def both(self, move: Callable[[World], None]) -> None:
        for world in self.worlds:
            move(world)

    def busy(self) -> bool:
        return self.worlds[0].scheduler.in_flight > 0

    def idle(self) -> bool:
        return not self.busy()

    def over(self) -> bool:
        return self.worlds[0].over

    def in_progress(self) -> bool:
        return not self.over()

    @precondition(idle)
    @rule(problems=st.integers(0, 4))
    def begin(self, problems: int) -> None:
        """A step that is in progress, without a sample in flight, ends so."""
        self.both(lambda world: world.begin(problems))

    @precondition(in_progress)
    @rule()
    def enter(self) -> None:
        self.both(lambda world: world.enter())

    @precondition(in_progress)
    @rule()
    def end_step(self) -> None:
        self.both(lambda world: world.end_step())

    @precondition(busy)
    @rule(steps=st.integers(1, 6))
    def decode(self, steps: int) -> None:
        for _ in range(steps):
            self.both(lambda world: world.step())

    @precondition(busy)
    @rule(kinds=st.lists(st.sampled_from(sorted(FAULTS)), min_size=1, max_size=3))
    def fail(self, kinds: list[str]) -> None:
        self.both(lambda world: world.faults.extend(kinds))

    @precondition(idle)
    @rule(problems=st.integers(0, 3), kinds=st.lists(st.sampled_from(sorted(FAULTS)), max_size=2))
    def whole_step(self, problems: int, kinds: list[str]) -> None:
        """As `algorithm.ulorl_step` moves."""
        self.both(lambda world: world.begin(problems))
        self.both(lambda world: world.faults.extend(kinds))
        self.both(lambda world: world.end_step())
        self.both(lambda world: world.release())
        self.both(lambda world: world.train())
        self.both(lambda world: world.update())

    @precondition(idle)
    @rule(problems=st.integers(0, 3))
    def whole_overlapped_step(self, problems: int) -> None:
        """As `overlapped_step.overlapped_step` moves."""
        self.both(lambda world: world.train())
        self.both(lambda world: world.begin(problems))
        self.both(lambda world: world.end_step())
        self.both(lambda world: world.update())
        self.both(lambda world: world.release())

    @precondition(busy)
    @rule()
    def stop(self) -> None:
        self.both(lambda world: world.stop())

    @rule()
    def release(self) -> None:
        self.both(lambda world: world.release())

    @rule()
    def train(self) -> None:
        self.both(lambda world: world.train())

    @precondition(over)
    @rule()
    def update(self) -> None:
        self.both(lambda world: world.update())

    @precondition(over)
    @rule()
    def save(self) -> None:
        self.both(lambda world: world.save())

    @rule()
    def crash(self) -> None:
        self.both(lambda world: world.crash())

    @precondition(over)
    @rule()
    def only_one_crashes_and_nothing_differs(self) -> None:
        """At a boundary just saved, a world that restarts and one that continues are the same."""
        self.both(lambda world: world.save())
        self.both(lambda world: world.faults.clear())  # what would have failed is no state of the run
        self.worlds[0].crash()

    @precondition(over)
    @rule(schedule=st.sampled_from(SCHEDULES))
    def resume_under_another_schedule(self, schedule: Schedule) -> None:
        def resume(world: World) -> None:
            world.save()
            world.schedule = schedule
            world.crash()

        self.both(resume)

    @invariant()
    def every_sample_is_in_one_place(self) -> None:
        for world in self.worlds:
            ids = sorted(sample.id for samples in world.samples().values() for sample in samples)
            assert ids == list(range(world.scheduler.next_group * GROUP))
            assert world.scheduler._in_flight.keys() <= {sample.id for sample in world.scheduler.unfinished}
            assert [one.seed for one in world.asked] == [sample_seed(1, one.sample_id) for one in world.asked]
            assert world.scheduler.unfinished.lengths == {one.id: len(one) for one in world.scheduler.unfinished}
            assert world.engine.pending == world.scheduler.in_flight
            assert world.scheduler.in_flight <= (world.schedule.places or 10_000)

    @invariant()
    def groups_leave_once_and_whole(self) -> None:
        for world in self.worlds:
            gone = [*world.scheduler.experience.released, *world.trained]
            ids = [group.id for group in gone]
            assert len(set(ids)) == len(ids)
            assert not set(ids) & world.scheduler.experience.open_groups.keys()
            for group in gone:
                assert [m.sample.id for m in group.members] == list(range(group.id * GROUP, (group.id + 1) * GROUP))
                assert all(m.sample.status is not Status.UNFINISHED for m in group.members)
                assert group.problem.id == str(group.id)
                assert group.unscored == any(unscored(m.sample.id) for m in group.members)
                assert all(bool(m.error) == (m.reward is None) for m in group.members)

    @invariant()
    def budgets_shrink(self) -> None:
        for world in self.worlds:
            segment = LIMIT if world.schedule.max_versions else world.schedule.segment_tokens or LIMIT
            for request in world.asked:
                assert 0 < request.max_new_tokens <= min(segment, LIMIT - request.output_length)
            for samples in world.samples().values():
                for sample in samples:
                    left = LIMIT - len(sample)
                    assert 0 <= left <= world.budgets.get(sample.id, LIMIT)
                    world.budgets[sample.id] = left

    @invariant()
    def tokens_are_those_of_an_undisturbed_run(self) -> None:
        """Despite failures, tokens are the script's, with the log-probs of the version that drew each."""
        for world in self.worlds:
            for place, samples in world.samples().items():
                for sample in samples:
                    tokens, versions = sample.tokens.tolist(), sample.versions.tolist()
                    assert len(sample) == len(tokens) == len(versions) == len(sample.logprobs)
                    assert tokens == script(sample.id)[:LIMIT][: len(tokens)]
                    assert versions == sorted(versions)
                    assert not versions or versions[-1] <= world.version
                    drawn = [ScriptedEngine.logprob(version, index) for index, version in enumerate(versions)]
                    assert sample.logprobs.tolist() == np.array(drawn, np.float32).tolist()
                    ended = tokens[-1:] == [EOS]
                    status = (
                        Status.COMPLETE if ended else Status.TRUNCATED if len(tokens) == LIMIT else Status.UNFINISHED
                    )
                    assert sample.status is status
                    assert (place in ("waiting", "kept", "trained")) == (status is not Status.UNFINISHED)
                    assert all(s.finish is not Finish.EOS for s in sample.segments[:-1])

    @invariant()
    def the_same_moves_give_the_same_state(self) -> None:
        one, other = self.worlds
        assert one._saved() == other._saved()
        assert [r.sample_id for r in one.asked] == [r.sample_id for r in other.asked] or not one.asked
        for mine, theirs in zip(one.samples().values(), other.samples().values(), strict=True):
            assert [s.id for s in mine] == [s.id for s in theirs]

    def teardown(self) -> None:
        """Decoded to their ends, all groups leave, and nothing is left anywhere."""
        if not hasattr(self, "worlds"):
            return
        for world in self.worlds:
            world.end_step()
            for _ in range(world.scheduler.next_group * (1 + GROUP * LIMIT)):  # a step trains a group or draws a token
                world.release()
                world.train()
                if not world.scheduler.experience.open_groups:
                    break
                world.begin(0)
                world.end_step()
            assert world.scheduler.in_flight == 0
            assert [len(samples) for samples in world.samples().values()][:3] == [0, 0, 0]
            assert len(world.trained) == world.scheduler.next_group
            world.engine.close()


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestScheduler = Machine.TestCase
