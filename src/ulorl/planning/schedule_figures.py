"""What a schedule costs and brings, from the steps of its simulation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ulorl.planning.latency_profile import LatencyProfile
from ulorl.planning.simulated_step import Samples, SimulatedStep

_T = TypeVar("_T")
FIRST = 8  # steps whose length bias is shown for itself


@dataclass(frozen=True)
class ScheduleFigures:
    """Means over the second half of the steps, the steady state, unless said otherwise.

    rollout_groups_a_second: without the update and the weight sync. decode_steps: of all engines for 1,000 trained
    tokens. prefill: prefilled tokens for a trained token; again: those of them that had been computed before. idle,
    prefill_time: the shares of the rollout in which an engine has no row, and computes prompts and carried outputs.
    rows: that an engine decodes, over the rollout; occupancy: as a share of its slots.
    kv_peak: the largest share of an engine's keys and values, 0 where they have no limit. preemptions: a step.
    age: versions between drawing a token and the update. versions: that drew the tokens of a sample; most_versions: of
    any. bias: the mean trained length over the mean of all that was started; first_bias: in the first 8 steps, over
    what was started in these. batch: groups a step for one of N. growth: the batch of the last quarter over that of the
    third. ramp: steps until as many samples are carried as later, up to a tenth.
    """

    groups_a_second: float
    rollout_groups_a_second: float
    tokens_a_second: float
    step_seconds: float
    rollout_seconds: float
    learner_seconds: float
    decode_steps: float
    prefill: float
    again: float
    idle: float
    prefill_time: float
    rows: float
    occupancy: float
    kv_peak: float
    preemptions: float
    age: float
    versions: float
    most_versions: int
    bias: float
    first_bias: float
    batch: float
    growth: float
    ramp: int


def figures_of(steps: Sequence[SimulatedStep], profile: LatencyProfile, prompts: int) -> ScheduleFigures:
    """Return the figures of at least 4 steps of a schedule with N = `prompts`. Raises ValueError for fewer, and when
    the second half of them trains nothing."""
    if len(steps) < 4:
        raise ValueError(f"{len(steps)} steps are too few to see a steady state; simulate at least 4")
    steady = steps[len(steps) // 2 :]
    trained, engines = _trained(steady), [engine for step in steady for engine in step.engines]
    if not trained.tokens:
        raise ValueError(f"no group was trained in {len(steady)} steps after {len(steps) - len(steady)}")
    groups, seconds = _sum(steady, lambda s: s.groups), _sum(steady, lambda s: s.seconds)
    rollout = _sum(steady, lambda s: s.rollout_seconds)
    prefilled, again = _sum(engines, lambda e: e.prefill_tokens), _sum(engines, lambda e: e.again_tokens)
    decoding, prefilling = _sum(engines, lambda e: e.decode_seconds), _sum(engines, lambda e: e.prefill_seconds)
    rows = _sum(engines, lambda e: e.row_seconds) / (rollout * profile.engines)
    middle = len(steady) // 2
    return ScheduleFigures(
        groups_a_second=groups / seconds,
        rollout_groups_a_second=groups / rollout,
        tokens_a_second=trained.tokens / seconds,
        step_seconds=seconds / len(steady),
        rollout_seconds=rollout / len(steady),
        learner_seconds=_sum(steady, lambda s: s.learner_seconds) / len(steady),
        decode_steps=1000 * _sum(engines, lambda e: e.decode_steps) / trained.tokens,
        prefill=prefilled / trained.tokens,
        again=again / trained.tokens,
        idle=1 - (decoding + prefilling) / (rollout * profile.engines),
        prefill_time=prefilling / (rollout * profile.engines),
        rows=rows,
        occupancy=rows / profile.slots,
        kv_peak=max(engine.context_peak for engine in engines) / profile.kv_tokens if profile.kv_tokens else 0.0,
        preemptions=_sum(engines, lambda e: e.preemptions) / len(steady),
        age=_sum(steady, lambda s: s.age_tokens) / trained.tokens,
        versions=trained.versions / trained.samples,
        most_versions=trained.most_versions,
        bias=_mean_trained(steady) / _mean_started(steps),
        first_bias=_mean_trained(steps[:FIRST]) / _mean_started(steps[:FIRST]),
        batch=groups / len(steady) / prompts,
        growth=_sum(steady[middle:], lambda s: s.groups) / max(1, _sum(steady[:middle], lambda s: s.groups)),
        ramp=_ramp([step.carried for step in steps]),
    )


def _sum(values: Sequence[_T], of: Callable[[_T], float]) -> float:
    return sum(map(of, values))


def _trained(steps: Sequence[SimulatedStep]) -> Samples:
    total = Samples()
    for step in steps:
        total.add(step.trained)
    return total


def _mean_trained(steps: Sequence[SimulatedStep]) -> float:
    trained = _trained(steps)
    return trained.tokens / trained.samples if trained.samples else 0.0


def _mean_started(steps: Sequence[SimulatedStep]) -> float:
    return sum(step.started_tokens for step in steps) / sum(step.started_samples for step in steps)


def _ramp(carried: Sequence[int]) -> int:
    steady = carried[len(carried) // 2 :]
    enough = 0.9 * sum(steady) / len(steady)
    return next(index for index, count in enumerate(carried) if count >= enough)
