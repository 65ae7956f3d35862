"""What is measured about a step of Algorithm 1, on the scripted engine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from scorers import ScorerOf
from ulorl.algorithm import Step, ulorl_step
from ulorl.cancellation import NEVER, CancelToken
from ulorl.engines.engine import Engine
from ulorl.engines.fleet import EngineFleet, FleetSettings
from ulorl.engines.scripted import ScriptedEngine
from ulorl.engines.segment_checks import SegmentChecks
from ulorl.engines.thread_worker import ThreadWorker
from ulorl.learner.learner import Weights
from ulorl.learner.update_result import Update
from ulorl.objective.mismatch import Mismatch
from ulorl.rollout.length_bias import KEPT, LengthBias
from ulorl.rollout.scheduler import Scheduler
from ulorl.rollout.schedules import SegmentSchedule
from ulorl.training.measured_step import MeasuredStep, measured_step
from ulorl.training.step_metrics import count_step, step_metrics
from ulorl.types import Group, Metrics, Problem, Sample, Sampling, Scored, Segment


class Right(ScorerOf):
    """Gives every sample 1."""

    def score(self, _: Problem, sample: Sample) -> Scored:
        return Scored(sample, 1.0, "")


class CountingLearner:
    """Trains nothing, and counts versions. Drops the groups whose ids are in `dropped`."""

    version = 0

    def __init__(self, dropped: Sequence[int] = ()) -> None:
        self.dropped = dropped

    def update(self, groups: Sequence[Group], _: object = None) -> Update:
        trained = [group for group in groups if group.id not in self.dropped]
        self.version += bool(trained)
        advantages = {member.sample.id: 0.0 for group in trained for member in group.members}
        return Update(steps=int(bool(trained)), groups_dropped=len(groups) - len(trained), advantages=advantages)

    def publish(self) -> Weights:
        return Weights(self.version, ())


def test_the_weights_are_checked_when_they_change_and_progress_is_reported() -> None:
    """Two samples of one problem, in segments of 2: one ends in step 1, the other in step 2, which updates."""
    engine, learner = ScriptedEngine({0: [1, 0], 1: [1, 1, 1, 0]}, eos_id=0), CountingLearner()
    scheduler = Scheduler(SegmentSchedule(prompts=1, group=2, tokens=2), max_tokens=6, sampling=Sampling(), seed=1)
    versions: list[int] = []
    segments: list[int] = []

    def check(engine: ScriptedEngine, learner: CountingLearner) -> Mismatch:
        assert engine.version == learner.version
        versions.append(engine.version)
        return Mismatch(1, 0.0, 0.0, 0.0)

    def step(*problems: str) -> MeasuredStep:
        new = [(Problem(p, p), np.array([7], np.int32)) for p in problems]

        def make_step(recorder: Engine) -> Step:
            return ulorl_step(scheduler, recorder, Right(), learner, new)

        return measured_step(make_step, engine, learner, check, lambda: segments.append(1))  # type: ignore[arg-type]

    first, second = step("a"), step()
    assert (first.weight_mismatch, first.work.decode_tokens, first.step.update.steps) == (None, 4, 0)
    assert (second.weight_mismatch, second.work.decode_tokens) == (Mismatch(1, 0.0, 0.0, 0.0), 2)
    assert (versions, len(segments)) == ([1], 3)
    for one in (first, second):
        assert min(one.rollout_seconds, one.reward_seconds, one.update_seconds, one.sync_seconds) >= 0


def test_the_wait_for_rewards_is_no_part_of_the_rollout() -> None:
    """Of a step whose clock counts calls: the rollout ends when the engine returns its last segment, the rewards are
    waited for until the engine sleeps, and the update begins then."""
    now = 0.0

    class Judging(Right):
        def wait(self, futures: Sequence[Future[Scored]], cancel: CancelToken = NEVER) -> Iterator[Scored]:
            nonlocal now
            now += 100.0
            return super().wait(futures, cancel)

    class Updating(CountingLearner):
        def update(self, groups: Sequence[Group], _: object = None) -> Update:
            nonlocal now
            now += 1000.0
            return super().update(groups)

    class Decoding(ScriptedEngine):
        def step(self) -> list[Segment]:
            nonlocal now
            now += 1.0
            return super().step()

    engine, learner = Decoding({0: [1, 0], 1: [1, 1, 0]}, eos_id=0), Updating()
    scheduler = Scheduler(SegmentSchedule(prompts=1, group=2, tokens=4), max_tokens=6, sampling=Sampling(), seed=1)
    new = [(Problem("a", "a"), np.array([7], np.int32))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ulorl.training.measured_step.time.perf_counter", lambda: now)
        made = measured_step(lambda engine: ulorl_step(scheduler, engine, Judging(), learner, new), engine, learner)  # type: ignore[arg-type]
    assert (made.rollout_seconds, made.reward_seconds, made.update_seconds, made.sync_seconds) == (3, 100, 1000, 0)
    metrics = step_metrics(1, made, scheduler, 1, slots=8)
    assert (metrics["time/reward"], metrics["time/step"]) == (100, 1103)
    assert metrics["rollout/tokens_per_second"] == 5 / 3


def test_the_metrics_of_a_schedule() -> None:
    """Two groups of 2, segments of 2, an engine with 4 slots.

    Step 1: the samples of group 0 end with their first token and train, 1 group of N = 2. In group 1, one sample ends
    with its second token, the other one is carried over: 6 tokens in 2 decode steps. A started sample is known to have
    1 + 2/4 tokens. Step 2 has no new problem. The sample ends with its fourth token, from a second version: 2 tokens in
    2 decode steps. Group 1 trains, with 4 + 2 tokens. The mean of what was started is (1 + 1 + 4 + 2) / 4 = 2.
    """
    engine = ScriptedEngine({0: [0], 1: [0], 2: [1, 1, 1, 0], 3: [1, 0]}, eos_id=0, slots=4)
    learner, bias = CountingLearner(), LengthBias(6)
    scheduler = Scheduler(SegmentSchedule(prompts=2, group=2, tokens=2), max_tokens=6, sampling=Sampling(), seed=1)

    def step(number: int, *problems: str) -> tuple[Metrics, dict[str, Any]]:
        new = [(Problem(p, p), np.array([7], np.int32)) for p in problems]
        made = measured_step(lambda engine: ulorl_step(scheduler, engine, Right(), learner, new), engine, learner)  # type: ignore[arg-type]
        metrics = step_metrics(number, made, scheduler, learner.version, slots=4) | count_step(bias, made)
        return metrics, made.timeline(number)

    (first, early), (second, late) = step(1, "a", "b"), step(2)
    assert [early[name] for name in ("sample", "start", "end", "tokens", "status")] == [
        [0, 1, 2, 3], [0, 0, 0, 0], [1, 1, 2, 2], [1, 1, 2, 2], "ccuc"
    ]  # fmt: skip
    assert late == {
        "step": 2, "version": 1, "unit": "decode steps", "length": 2,
        "sample": [2], "start": [0], "end": [2], "tokens": [2], "status": "c",
    }  # fmt: skip
    expected = {
        "engine/occupancy": (6 / 8, 2 / 8), "rollout/groups_open": (1, 0), "rollout/groups_waiting": (0, 0),
        "train/batch_growth": (0.5, 0.5), "train/length_mean": (1, 3), "train/versions_mean": (1, 1.5),
        "train/versions_max": (1, 2), "train/length_bias": (1 / 1.5, (2 * KEPT + 6) / (2 * KEPT + 2) / 2),
        # -log p is (1 + version) / (2 + index): 1/2, 1/2, 1/2 + 1/3; the carried sample 1/2 + 1/3 + 2/4 + 2/5
        "entropy/finished": ((3 / 2 + 1 / 3) / 4, (1 / 2 + 1 / 3 + 2 / 4 + 2 / 5) / 4),
    }  # fmt: skip
    assert {name: (first[name], second[name]) for name in expected} == {
        k: pytest.approx(v) for k, v in expected.items()
    }


def test_the_length_bias_counts_the_samples_that_are_trained() -> None:
    """Two groups of 2 end in one step: one with outputs of 1 token, one with outputs of 3, which is dropped as dynamic
    sampling drops a group that is all wrong. 4 samples were started, of 2 tokens on average; those trained have 1."""
    engine = ScriptedEngine({0: [0], 1: [0], 2: [1, 1, 0], 3: [1, 1, 0]}, eos_id=0, slots=4)
    learner, bias = CountingLearner(dropped=[1]), LengthBias(4)
    scheduler = Scheduler(SegmentSchedule(prompts=2, group=2, tokens=4), max_tokens=4, sampling=Sampling(), seed=1)
    new = [(Problem(p, p), np.array([7], np.int32)) for p in ("a", "b")]
    made = measured_step(lambda engine: ulorl_step(scheduler, engine, Right(), learner, new), engine, learner)  # type: ignore[arg-type]
    assert len(made.step.groups) == 2
    assert count_step(bias, made) == {"train/length_bias": pytest.approx(1 / 2)}


def test_segments_of_several_engines_are_timed_by_the_clock() -> None:
    """Three samples for two engines with a slot each, of which a decode step takes 20 ms: the third sample begins when
    one of the first two has ended."""

    class Slow(ScriptedEngine):
        def step(self) -> list[Segment]:
            time.sleep(0.02)
            return super().step()

    workers = [ThreadWorker(Slow(lambda _: [1, 1, 1, 0], eos_id=0, slots=1), report_seconds=0.01) for _ in range(2)]
    settings = FleetSettings(slots=1, group=3)
    checks = SegmentChecks([0], 9, Sampling())
    scheduler = Scheduler(SegmentSchedule(prompts=1, group=3, tokens=6), max_tokens=6, sampling=Sampling(), seed=1)
    new = [(Problem("a", "a"), np.array([7], np.int32))]
    with closing(EngineFleet(workers, remake=lambda index: workers[index], checks=checks, settings=settings)) as fleet:
        made = measured_step(
            lambda engine: ulorl_step(scheduler, engine, Right(), CountingLearner(), new),
            fleet,
            CountingLearner(),  # type: ignore[arg-type]
        )
        assert not fleet.given
    found = made.timeline(1)
    assert (found["unit"], found["status"], found["tokens"]) == ("milliseconds", "ccc", [4, 4, 4])
    starts, ends, (one, other, third) = found["start"], found["end"], found["engine"]
    assert {one, other} == {0, 1}
    before = [one, other].index(third)  # the sample whose slot the third one takes
    assert ends[before] - starts[before] >= 60
    assert max(starts[:2]) < ends[before] <= starts[2] < ends[2] <= found["length"]
