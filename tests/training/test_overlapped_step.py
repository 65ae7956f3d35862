"""Overlapped steps, followed by hand with the scripted engine and a learner whose updates end when the test says so."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from scorers import ScorerOf
from ulorl.algorithm import Step
from ulorl.cancellation import NEVER, Cancelled, CancelToken
from ulorl.engines.scripted import ScriptedEngine
from ulorl.learner.learner import Weights
from ulorl.learner.update_result import Update
from ulorl.rollout.scheduler import Scheduler
from ulorl.rollout.schedules import OversubscribeSchedule, RefillSchedule, Schedule, SegmentSchedule
from ulorl.training.overlapped_step import overlapped_step
from ulorl.types import Group, Problem, Sample, Sampling, Scored, Segment

EOS, SECONDS = 0, 20
PROMPT = np.array([7], np.int32)


class Right(ScorerOf):
    """Gives every sample 1."""

    def score(self, _: Problem, sample: Sample) -> Scored:
        return Scored(sample, 1.0, "")


class CountingLearner:
    """Trains nothing; counts versions. `during` is called inside each update, in its thread."""

    def __init__(self, during: Callable[[CancelToken], None] = lambda _: None) -> None:
        self.version, self.during = 0, during
        self.seen: list[tuple[int, list[int]]] = []  # the version at an update's start, and its groups
        self.pending: Future[Update] | None = None
        self._thread = ThreadPoolExecutor(1)

    def begin(self, groups: Sequence[Group], cancel: CancelToken) -> Future[Update]:
        self.seen.append((self.version, [group.id for group in groups]))
        self.pending = self._thread.submit(self._update, groups, cancel)
        return self.pending

    def _update(self, groups: Sequence[Group], cancel: CancelToken) -> Update:
        self.during(cancel)
        self.version += bool(groups)
        return Update(steps=int(bool(groups)))

    def publish(self) -> Weights:
        assert self.pending is not None
        assert self.pending.done()
        return Weights(self.version, ())


class HookedEngine(ScriptedEngine):
    """Calls `hook` at each decode step."""

    hook: Callable[[], None] = staticmethod(lambda: None)

    def step(self) -> list[Segment]:
        self.hook()
        return super().step()


class Run:
    """Two samples a problem, L = 4, segments of 2 tokens or another schedule; scripts: the samples' outputs."""

    def __init__(self, scripts: dict[int, list[int]], schedule: Schedule | None = None) -> None:
        self.engine, self.learner = HookedEngine(scripts, EOS), CountingLearner()
        schedule = schedule or SegmentSchedule(prompts=10, group=2, tokens=2)
        self.scheduler = Scheduler(schedule, max_tokens=4, sampling=Sampling(), seed=1)
        self.late = 0

    def step(self, *problems: str, cancel: CancelToken = NEVER) -> Step:
        new: Any = [(Problem(p, p), PROMPT) for p in problems]
        return overlapped_step(self.scheduler, self.engine, Right(), self.learner, new, cancel, self._count)  # type: ignore[arg-type]

    def _count(self) -> None:
        self.late += 1


SHORT = {id: [1, EOS] for id in range(12)}


def test_which_groups_train_when_by_hand() -> None:
    """Group 1's second sample needs two segments; all other samples end in the step in which they begin."""
    run = Run({**SHORT, 3: [2, 2, 2, EOS]})
    steps = [run.step(*problems) for problems in ("a", "b", "c", "d", "")]

    assert [[g.id for g in step.groups] for step in steps] == [[], [0], [], [1, 2], [3]]
    assert [[g.id for g in step.released or ()] for step in steps] == [[0], [], [1, 2], [3], []]
    assert run.learner.seen == [(0, []), (0, [0]), (1, []), (1, [1, 2]), (2, [3])]
    assert [step.update.steps for step in steps] == [0, 1, 0, 1, 1]
    assert run.engine.version == run.learner.version == 3
    assert list(run.scheduler.experience.released) == []

    # One version a segment: that of the engine in the step, which the update of the step changes afterwards.
    assert versions_of(steps) == {
        0: [0, 0],
        1: [0, 0],
        2: [0, 0],
        3: [0, 0, 1, 1],
        4: [1, 1],
        5: [1, 1],
        6: [1, 1],
        7: [1, 1],
    }


def versions_of(steps: Sequence[Step]) -> dict[int, list[int]]:
    return {m.sample.id: m.sample.versions.tolist() for step in steps for g in step.groups for m in g.members}


def test_oversubscribed_by_hand() -> None:
    """N = 1, factor 2: group 1's second sample is stopped after 2 tokens, when group 0 is in. It ends in step 2 with
    group 2, which is the batch of step 3, so that step decodes nothing."""
    run = Run({**SHORT, 3: [2, 2, 2, EOS]}, OversubscribeSchedule(prompts=1, group=2, factor=2))
    steps = [run.step(*problems) for problems in ("ab", "c", "", "de")]
    assert [[g.id for g in step.released or ()] for step in steps] == [[0], [1], [2], [3]]
    assert [[sample.id for sample in step.segments] for step in steps] == [[0, 1, 2, 3], [3, 4, 5], [], [6, 7, 8, 9]]
    assert run.learner.seen == [(0, []), (0, [0]), (1, [1]), (2, [2])]
    assert versions_of([*steps, run.step()])[6] == [2, 2]
    assert versions_of(steps) == {id: [0, 0, 0, 0] if id == 3 else [0, 0] for id in range(6)}


def test_refilled_by_hand() -> None:
    """N = 1, factor 1: 2 places. Sample 2 takes the place of 0 and ends with sample 1, in decode step 4: group 0 is in,
    and sample 3 has not entered. Sample 5 is in the same case in step 2, so it comes from the next version."""
    run = Run({**SHORT, 1: [2, 2, 2, EOS]}, RefillSchedule(prompts=1, group=2, factor=1))
    steps = [run.step(*problems) for problems in ("ab", "c", "d", "e")]
    assert [[g.id for g in step.released or ()] for step in steps] == [[0], [1], [2], [3]]
    assert [[sample.id for sample in step.segments] for step in steps] == [[0, 1, 2], [3, 4], [5, 6], [7, 8]]
    assert run.learner.seen == [(0, []), (0, [0]), (1, [1]), (2, [2])]
    assert versions_of(steps) == {0: [0, 0], 1: [0, 0, 0, 0], 2: [0, 0], 3: [0, 0], 4: [0, 0], 5: [1, 1]}


def test_in_a_steady_run_every_token_is_one_version_old() -> None:
    run = Run(SHORT)
    steps = [run.step(problem) for problem in "abcdef"]
    newest = {g.id: int(m.sample.versions.max()) for step in steps for g in step.groups for m in g.members}
    ages = [start - newest[id] for start, ids in run.learner.seen for id in ids]
    assert ages == [0, 1, 1, 1, 1]  # the first update follows a step that trained nothing
    assert [g.id for g in run.scheduler.experience.released] == [5]  # for a run of more steps


def test_the_engine_decodes_while_the_update_runs() -> None:
    decoded = threading.Event()

    def during(_: CancelToken) -> None:
        assert decoded.wait(SECONDS)

    run = Run(SHORT)
    run.step("a")
    run.learner.during, run.engine.hook = during, decoded.set
    assert run.step("b").update.steps == 1


def test_cancelling_before_the_weights_change_drops_the_step() -> None:
    def during(cancel: CancelToken) -> None:
        while True:
            cancel.check()

    run, cancel = Run(SHORT), CancelToken()
    run.step("a")
    run.learner.during, run.engine.hook = during, cancel.cancel
    with pytest.raises(Cancelled):
        run.step("b", cancel=cancel)
    assert run.learner.pending is not None
    assert run.learner.pending.done()
    assert (run.learner.version, run.engine.version, run.late) == (0, 0, 0)


def test_cancelling_after_the_weights_changed_finishes_the_step() -> None:
    run, cancel = Run(SHORT), CancelToken()
    run.step("a")

    def after_the_update() -> None:
        assert run.learner.pending is not None
        assert run.learner.pending.result(SECONDS).steps == 1
        cancel.cancel()

    run.engine.hook = after_the_update
    step = run.step("b", cancel=cancel)
    assert (step.update.steps, len(step.finished), run.engine.version, run.late) == (1, 2, 1, 1)
    assert [g.id for g in run.scheduler.experience.released] == [1]


def test_an_error_of_the_update_is_raised_at_the_next_decode_step() -> None:
    def during(_: CancelToken) -> None:
        raise MemoryError("no memory for the gradient")

    run = Run({**SHORT, 2: [3] * 4, 3: [3] * 4})
    run.step("a")
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1
        assert run.learner.pending is not None
        assert run.learner.pending.exception(SECONDS)

    run.learner.during, run.engine.hook = during, count
    with pytest.raises(MemoryError, match="no memory for the gradient"):
        run.step("b")
    assert steps == 1  # of two


def test_an_error_of_the_rollout_ends_the_update() -> None:
    ended = []

    def during(cancel: CancelToken) -> None:
        try:
            while True:
                cancel.check()
        finally:
            ended.append(True)

    def broken() -> None:
        raise OSError("the engine is gone")

    run = Run(SHORT)
    run.step("a")
    run.learner.during, run.engine.hook = during, broken
    with pytest.raises(OSError, match="the engine is gone"):
        run.step("b")
    assert ended == [True]
    assert run.learner.version == 0
