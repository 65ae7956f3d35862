"""Plays rollout steps without tokens and without an engine: the schedules and the dispatch of training decide what
decodes when, a latency profile says how long it takes. The time of a step jumps from event to event, so that a million
samples take seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from heapq import heappop, heappush

from ulorl.engines.dealing import Dealer
from ulorl.planning.decode_times import decode_times
from ulorl.planning.latency_profile import LatencyProfile
from ulorl.planning.simulated_engine import EngineFigures, Row, SimulatedEngine
from ulorl.planning.simulated_step import Samples, SimulatedStep, Stay
from ulorl.rollout.dispatch import StepDispatch, ready_groups
from ulorl.rollout.schedules import Schedule


@dataclass(frozen=True)
class Setting:
    """What all schedules have in common.

    max_tokens: the global maximum output length L. prompt_tokens: of every prompt. lengths: returns the output tokens
    of the samples of a group; longer ones are cut at L.
    """

    profile: LatencyProfile
    max_tokens: int
    prompt_tokens: int
    lengths: Callable[[int], Iterable[int]]


@dataclass(slots=True)
class _Sample:
    """An unfinished sample. version: the last one that drew a token."""

    length: int
    tokens: int = 0
    versions: int = 0
    version: int = -1
    version_tokens: int = 0


@dataclass(slots=True)
class _Group:
    """An open group: samples that are not finished, and sums over those that are."""

    left: int
    finished: Samples = field(default_factory=Samples)


class RolloutSimulation:
    """The run of one schedule, step by step. stays: collects where each sample was when, if it is given."""

    def __init__(self, schedule: Schedule, setting: Setting, stays: list[Stay] | None = None) -> None:
        profile = setting.profile
        times = cache(partial(decode_times, profile.decode))
        self.version = 0
        self.seconds = 0.0
        self._schedule, self._setting, self._stays = schedule, setting, stays
        self._engines = [SimulatedEngine(profile, times) for _ in range(profile.engines)]
        self._next_group = 0
        self._started_tokens = 0
        self._seen = Samples()  # that were trained: no problem comes twice, so nothing else is known of a new one
        self._unfinished: dict[int, _Sample] = {}  # by sample id, in rising order, as groups are opened in that order
        self._groups: dict[int, _Group] = {}  # those that were not trained

    def steps(self, count: int) -> Iterator[SimulatedStep]:
        """Make and yield `count` steps."""
        for _ in range(count):
            yield self.step()

    def step(self) -> SimulatedStep:
        """Make one step: a rollout, an update on the groups that the schedule trains, and a weight sync."""
        began, carried = self.seconds, len(self._unfinished)
        first, started_tokens = self._next_group, self._started_tokens
        for engine in self._engines:
            engine.figures = EngineFigures()
        self._rollout()
        groups, trained = self._train()
        rollout, profile = self.seconds - began, self._setting.profile
        age_tokens = self.version * trained.tokens - trained.version_tokens
        learner, sync = (profile.learner.at(trained.tokens), profile.sync_seconds) if groups else (0.0, 0.0)
        self.seconds += learner + sync
        self.version += groups > 0
        return SimulatedStep(
            carried=carried,
            started_samples=(self._next_group - first) * self._schedule.group,
            started_tokens=self._started_tokens - started_tokens,
            groups=groups,
            trained=trained,
            age_tokens=age_tokens,
            rollout_seconds=rollout,
            learner_seconds=learner,
            sync_seconds=sync,
            engines=tuple(engine.figures for engine in self._engines),
        )

    def _rollout(self) -> None:
        """Decode until the schedule ends the step, as `engines.decode.scheduled_rollout` does."""
        schedule, engines = self._schedule, self._engines
        dispatch = StepDispatch(
            schedule,
            self._setting.max_tokens,
            {id: sample.tokens for id, sample in self._unfinished.items()},
            {id: group.finished.tokens for id, group in self._groups.items()},
            versions={id: one.versions for id, one in self._unfinished.items()} if schedule.max_versions else None,
            slots=self._setting.profile.slots * len(engines),
            visited=lambda _: self._seen.tokens / self._seen.samples if self._seen.samples else 0.0,
            next_group=self._next_group,
        )
        deal = _deal_to_one if len(engines) == 1 else _Fleet(self._setting.profile, schedule.group)
        events, touched, ended = list[tuple[float, int]](), set[int](), list[Row]()
        while not dispatch.over:
            for _ in range(dispatch.new_groups()):
                dispatch.open(self._open_group())
            for row, engine in deal(map(self._row, *dispatch.admit()), ended):
                engines[engine].add(row)
                touched.add(engine)
            if not dispatch.counts.in_flight:  # the step is over
                continue
            for engine in touched:
                heappush(events, (engines[engine].schedule(self.seconds), engine))
            self.seconds, engine = heappop(events)
            while self.seconds != engines[engine].event:  # the event has moved
                self.seconds, engine = heappop(events)
            touched = {engine}
            ended = engines[engine].advance()
            for row in ended:
                finished = self._end_segment(row, engine)
                dispatch.ended(row.sample_id, row.output + row.drawn, finished=finished)
        self._stop()

    def _stop(self) -> None:
        """Stop what decodes, after the decode steps in progress."""
        for index, engine in enumerate(self._engines):
            for row in engine.abort(self.seconds):
                if row.drawn:
                    self._end_segment(row, index)
        self.seconds = max(self.seconds, *(engine.time for engine in self._engines))

    def _open_group(self) -> int:
        id, size = self._next_group, self._schedule.group
        self._next_group += 1
        self._groups[id] = _Group(left=size)
        for sample, length in enumerate(self._setting.lengths(id), start=id * size):
            self._unfinished[sample] = _Sample(min(length, self._setting.max_tokens))
            self._started_tokens += self._unfinished[sample].length
        return id

    def _row(self, id: int, budget: int, expected: int) -> Row:
        sample = self._unfinished[id]
        prompt, draws = self._setting.prompt_tokens, min(budget, sample.length - sample.tokens)
        return Row(id, id // self._schedule.group, prompt, sample.tokens, budget, expected, draws)

    def _end_segment(self, row: Row, engine: int) -> bool:
        """Append what a row drew to its sample; return whether the sample is finished."""
        sample = self._unfinished[row.sample_id]
        sample.tokens += row.drawn
        sample.version_tokens += row.drawn * self.version
        sample.versions += sample.version != self.version
        sample.version = self.version
        if self._stays is not None:
            self._stays.append(Stay(row.sample_id, engine, self.version, row.entered, self._engines[engine].time))
        if sample.tokens < sample.length:
            return False
        group = self._groups[row.group]
        group.left -= 1
        group.finished.add(Samples(1, sample.tokens, sample.versions, sample.versions, sample.version_tokens))
        del self._unfinished[row.sample_id]
        return True

    def _train(self) -> tuple[int, Samples]:
        """Remove the groups that the schedule trains, as `Scheduler.release` does; return their number and samples."""
        finished = {id: group.finished for id, group in self._groups.items() if not group.left}
        unfinished = self._groups.keys() - finished.keys()
        ready = ready_groups(finished, unfinished, self._schedule.window)
        ready = ready[: self._schedule.trained([finished[id].tokens for id in ready])]
        trained = Samples()
        for id in ready:
            trained.add(self._groups.pop(id).finished)
        self._seen.add(trained)
        return len(ready), trained


def _deal_to_one(rows: Iterable[Row], _: Iterable[Row]) -> Iterator[tuple[Row, int]]:
    """Give everything to the only engine, in which it waits for a slot."""
    return ((row, 0) for row in rows)


class _Fleet:
    """Deals rows to engines as the fleet of training does."""

    def __init__(self, profile: LatencyProfile, group: int) -> None:
        self._dealer = Dealer[Row](profile.engines, profile.slots, group)
        self._all = range(profile.engines)

    def __call__(self, rows: Iterable[Row], ended: Iterable[Row]) -> Iterator[tuple[Row, int]]:
        """Take note of rows that ended, and return which engines get which of the rows that wait."""
        for row in ended:
            self._dealer.returned(row.sample_id)
        for row in rows:
            self._dealer.add(row)
        return ((row, engine) for engine, dealt in self._dealer.deal(self._all).items() for row in dealt)
