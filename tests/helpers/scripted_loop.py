"""Algorithm 1 without a model: a scripted engine, a scorer and a learner that only counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from scorers import ScorerOf
from ulorl.algorithm import Step, ulorl_step
from ulorl.engines.fleet import EngineFleet
from ulorl.engines.scripted import ScriptedEngine
from ulorl.learner.learner import Weights
from ulorl.learner.update_result import Update
from ulorl.rollout.scheduler import Scheduler
from ulorl.rollout.schedules import Schedule
from ulorl.types import Group, Problem, Sample, Sampling, Scored, Segment, Status

EOS = 0
PROMPT = np.array([7, 8, 9], np.int32)


@dataclass
class CountingLearner:
    """Trains nothing; counts versions and remembers the ids of the groups it was given."""

    version: int = 0
    seen: list[list[int]] = field(default_factory=list)

    def update(self, groups: Sequence[Group], _: object = None) -> Update:
        self.seen.append([g.id for g in groups])
        self.version += bool(groups)
        return Update(steps=int(bool(groups)))

    def publish(self) -> Weights:
        return Weights(self.version, ())


class Right(ScorerOf):
    """Gives every complete sample 1."""

    def score(self, _: Problem, sample: Sample) -> Scored:
        assert sample.status is not Status.UNFINISHED
        return Scored(sample, 0.0 if sample.status is Status.TRUNCATED else 1.0, "")


class WatchedEngine(ScriptedEngine):
    """Counts the most requests that were pending at once."""

    most = 0

    def step(self) -> list[Segment]:
        self.most = max(self.most, self.pending)
        return super().step()


def script(sample: int, length: int) -> list[int]:
    """An output of `length` tokens, EOS at its end; every other token is the sample's own."""
    return [sample + 1] * (length - 1) + [EOS]


class ScriptedLoop:
    """Steps of Algorithm 1 under `schedule` over outputs by sample id."""

    def __init__(
        self, scripts: Mapping[int, list[int]] | Callable[[int], list[int]], schedule: Schedule, max_tokens: int, *,
        slots: int = 0, fleet: EngineFleet | None = None,
    ) -> None:  # fmt: skip
        self.engine = WatchedEngine(scripts, EOS, slots=slots)
        self.learner = CountingLearner()
        self.scheduler = Scheduler(schedule, max_tokens=max_tokens, sampling=Sampling(), seed=1, slots=slots)
        self._fleet = fleet  # decodes instead of `engine`

    def step(self, problems: Iterable[str] = ()) -> Step:
        new = ((Problem(p, p), PROMPT) for p in problems)
        engine = self._fleet or self.engine
        return ulorl_step(self.scheduler, engine, Right(), self.learner, new)  # type: ignore[arg-type]
