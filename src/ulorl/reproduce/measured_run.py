"""A run of one schedule whose outputs have given lengths: its first steps are played, later ones are measured."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from itertools import count

import numpy as np

from ulorl.common.full_collections import no_full_collections
from ulorl.engines.decode import scheduled_rollout
from ulorl.engines.engine import Engine, EngineStats
from ulorl.engines.scripted import ScriptedEngine
from ulorl.reproduce.replayed_lengths import RepeatedLengths, ReplayEngine
from ulorl.rollout.scheduler import Scheduler
from ulorl.rollout.schedules import Schedule
from ulorl.types import Group, Problem, Prompted, Sampling, Scored, Status

PLAYED_STEPS = 24  # before the measured ones: three times as many as the longest sample has segments
_SCRIPTS = 1000
FIRST_STEPS = 8  # of these, whose bias is shown for itself


@dataclass
class StepSums:
    """Sums over steps.

    seconds: of the rollouts. version_counts: how many versions drew the tokens of each trained sample, added up;
    most_versions: of any. age_tokens: the versions between drawing each trained token and its update. again_tokens: of
    carried samples, computed again.
    """

    steps: int = 0
    seconds: float = 0.0
    groups: int = 0
    samples: int = 0
    trained_tokens: int = 0
    decode_steps: int = 0
    decode_tokens: int = 0
    prefill_tokens: int = 0
    again_tokens: int = 0
    age_tokens: int = 0
    version_counts: int = 0
    most_versions: int = 0

    def add(self, other: StepSums) -> None:
        """Add other steps."""
        most = max(self.most_versions, other.most_versions)
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))
        self.most_versions = most


@dataclass
class MeasuredRun:
    """A run of `schedule` with the real scheduler. group sizes and lengths: of `lengths`, [P, G].

    prompt_tokens: of every prompt; tokens are drawn below `vocabulary`. slots: rows at once. first: sums over the first
    8 steps, which are biased to short samples; first_started: the groups they started. measured, steps: sums over the
    measured steps, and each of them.
    """

    schedule: Schedule
    lengths: RepeatedLengths
    max_tokens: int
    prompt_tokens: int
    vocabulary: int
    slots: int
    version: int = 0
    first: StepSums = field(default_factory=StepSums)
    first_started: int = 0
    measured: StepSums = field(default_factory=StepSums)
    steps: list[StepSums] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._scheduler = Scheduler(
            self.schedule, max_tokens=self.max_tokens, sampling=Sampling(), seed=0, slots=self.slots
        )
        self._problems = self._new_problems()

    def play(self) -> None:
        """Make the first steps without decoding, so that the pools are as full as in steady state."""
        # another token for every sample: the engine computes the same request only once
        scripts = [[token] * self.max_tokens for token in range(1, min(self.vocabulary, _SCRIPTS))]
        engine = ScriptedEngine(lambda sample: scripts[sample % len(scripts)], eos_id=-1, slots=self.slots)
        for number in range(PLAYED_STEPS):
            sums, _ = self._step(engine)
            if number < FIRST_STEPS:
                self.first.add(sums)
                self.first_started = self._scheduler.next_group

    @property
    def first_length_bias(self) -> float | None:
        """Mean length of what the first steps trained over that of what they started; None: they trained nothing."""
        if not self.first.samples:
            return None
        started = [length for group in range(self.first_started) for length in self.lengths.of_group(group)]
        return self.first.trained_tokens / self.first.samples / (sum(started) / len(started))

    def measure(self, engine: Engine) -> list[Group]:
        """Make and measure one step on `engine`, whose model never draws EOS. Return the groups that it trains."""
        sums, groups = self._step(engine)
        self.measured.add(sums)
        self.steps.append(sums)
        return groups

    def _step(self, engine: Engine) -> tuple[StepSums, list[Group]]:
        replay = ReplayEngine(engine, self.lengths.of_sample, self.max_tokens)
        replay.version = self.version
        before, started, scheduler = replace(engine.stats), time.perf_counter(), self._scheduler
        scheduler.begin_step(self._problems)
        with no_full_collections():
            for segment in scheduled_rollout(replay, scheduler.next_requests):
                sample = scheduler.end_segment(segment)
                if sample.status is not Status.UNFINISHED:
                    scheduler.experience.add(Scored(sample, float(sample.id % 2), ""))
        seconds = time.perf_counter() - started
        engine.sleep()
        groups = scheduler.release()
        self._check(groups)
        sums = self._sums(seconds, replay, engine.stats.since(before), groups)
        self.version += bool(groups)  # there are new weights only after an update
        return sums, groups

    def _sums(self, seconds: float, replay: ReplayEngine, work: EngineStats, groups: list[Group]) -> StepSums:
        trained = [member.sample for group in groups for member in group.members]
        versions = [sample.version_count for sample in trained]
        return StepSums(
            steps=1,
            seconds=seconds,
            groups=len(groups),
            samples=len(trained),
            trained_tokens=sum(map(len, trained)),
            decode_steps=work.decode_steps,
            decode_tokens=work.decode_tokens,
            prefill_tokens=work.prefill_tokens,
            again_tokens=replay.again_tokens,
            age_tokens=sum(int((self.version - sample.versions).sum()) for sample in trained),
            version_counts=sum(versions),
            most_versions=max(versions, default=0),
        )

    def _check(self, groups: list[Group]) -> None:
        """Raise RuntimeError when a trained sample has another length than it was given."""
        for group in groups:
            found = [len(member.sample) for member in group.members]
            if found != self.lengths.of_group(group.id):
                raise RuntimeError(
                    f"group {group.id}: outputs of {found} tokens, not {self.lengths.of_group(group.id)}"
                )

    def _new_problems(self) -> Iterator[Prompted]:
        for number in count():
            prompt = np.random.default_rng(number).integers(1, self.vocabulary, self.prompt_tokens)
            yield Problem(str(number), ""), prompt.astype(np.int32)
