"""Compares rollout schedules by simulation at equal batch, and recommends one within limits on age and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ulorl.common.full_collections import no_full_collections
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.planning.decode_times import decode_times
from ulorl.planning.group_lengths import DrawnLengths, GroupLengths
from ulorl.planning.latency_profile import LatencyProfile
from ulorl.planning.rollout_simulation import RolloutSimulation, Setting
from ulorl.planning.schedule_figures import ScheduleFigures, figures_of
from ulorl.planning.simulated_step import Stay
from ulorl.rollout.schedules import Order, OversubscribeSchedule, RefillSchedule, Schedule, SegmentSchedule

SEGMENTS = (1, 2, 4, 8)
OVERSUBSCRIBE = (1.25, 1.5, 2.0, 3.0)
REFILL = (1.0, 2.0, 3.0)
AS_FAST = 0.98  # of the fastest schedule: among so fast ones, the one with the youngest tokens is recommended
_SAMPLES, _LEAST_STEPS, _MOST_STEPS = 32_000, 32, 400


@dataclass(frozen=True, kw_only=True)
class PlanSetting:
    """What is planned.

    prompts, group: groups a step (N), samples a group (G). max_tokens: L. prompt_tokens: of a prompt, in the mean.
    steps: to simulate of each schedule; 0: enough for about 32,000 samples, at least 32. max_versions, window, order:
    of every schedule (`Schedule`). max_age: of trained tokens, in the mean. kv_limit: the share of keys and values.
    """

    profile: LatencyProfile
    source: GroupLengths
    prompts: int
    group: int
    max_tokens: int
    prompt_tokens: int
    seed: int = 0
    steps: int = 0
    max_age: float = 2.0
    max_versions: int = 0
    window: int = 0
    order: Order = "fifo"
    kv_limit: float = 0.9

    @property
    def played_steps(self) -> int:
        """The steps of each schedule that are simulated."""
        return self.steps or min(_MOST_STEPS, max(_LEAST_STEPS, _SAMPLES // (self.prompts * self.group)))

    def simulation(self, schedule: Schedule, stays: list[Stay] | None = None) -> RolloutSimulation:
        """Return the run of a schedule. All schedules meet the same groups."""
        lengths = DrawnLengths(self.source, self.seed, self.group)
        return RolloutSimulation(schedule, Setting(self.profile, self.max_tokens, self.prompt_tokens, lengths), stays)


@dataclass(frozen=True)
class Choice:
    """A schedule as a recipe names it. segments, factor: whichever its kind has, else 1 and 0."""

    kind: str
    segments: int = 1
    factor: float = 0.0

    @property
    def name(self) -> str:
        """As tables show it."""
        return f"{self.kind} {self.segments if self.kind == 'segment' else format(self.factor, 'g')}"

    def schedule(self, setting: PlanSetting) -> Schedule:
        """Return the schedule for a setting."""
        shared: dict[str, Any] = dict(
            prompts=setting.prompts,
            group=setting.group,
            max_versions=setting.max_versions,
            window=setting.window,
            order=setting.order,
        )
        if self.kind == "segment":
            return SegmentSchedule(tokens=-(-setting.max_tokens // self.segments), **shared)
        batch = OversubscribeSchedule if self.kind == "oversubscribe" else RefillSchedule
        return batch(factor=self.factor, **shared)


CHOICES = (
    *(Choice("segment", segments=count) for count in SEGMENTS),
    *(Choice("oversubscribe", factor=factor) for factor in OVERSUBSCRIBE),
    *(Choice("refill", factor=factor) for factor in REFILL),
)


@dataclass(frozen=True)
class LengthFacts:
    """Output lengths in tokens, after the cut at `max_tokens`. cut: the share that it cuts. context: the mean tokens of
    a prompt and its output so far when a token is drawn."""

    mean: float
    p95: float
    cut: float
    context: float


@dataclass(frozen=True)
class Bound:
    """Every engine always decodes `rows` rows; each sample is prefilled once, with its siblings; update and weight sync
    stay. Groups a second, with and without these two.

    No schedule is faster than that. For the bound of carried samples, all samples in flight are prefilled again at each
    step, with their output so far, because new weights need new keys and values. That is what a schedule of constantly
    many rows can reach. One that lets rows end before a step does carries fewer samples, so it may exceed this one.
    """

    rows: int
    groups_a_second: float
    rollout_groups_a_second: float


@dataclass(frozen=True)
class Planned:
    """A choice and what its simulation showed. reasons: why it is not recommended, none for one within the limits."""

    choice: Choice
    figures: ScheduleFigures
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class SchedulePlan:
    """All choices of a setting; the first one is the baseline, a segment that is as long as an output may be."""

    setting: PlanSetting
    planned: tuple[Planned, ...]
    lengths: LengthFacts
    bound: Bound
    carried_bound: Bound

    @property
    def baseline(self) -> ScheduleFigures:
        """The figures of one segment."""
        return self.planned[0].figures

    @cached_property
    def recommended(self) -> Planned | None:
        """The choice with the youngest tokens among those within the limits that are about as fast as the fastest of
        them; None when the limits allow none."""
        allowed = [one for one in self.planned if not one.reasons]
        if not allowed:
            return None
        enough = AS_FAST * max(one.figures.groups_a_second for one in allowed)
        return min((one for one in allowed if one.figures.groups_a_second >= enough), key=lambda one: one.figures.age)

    @cached_property
    def fastest(self) -> Planned:
        """The fastest choice, whatever the limits are."""
        return max(self.planned, key=lambda one: one.figures.groups_a_second)

    @property
    def bound_speed(self) -> float:
        """The bound over one segment, of groups a second."""
        return self.bound.groups_a_second / self.baseline.groups_a_second

    @property
    def carried_bound_speed(self) -> float:
        """The bound of carried samples over one segment, of groups a second."""
        return self.carried_bound.groups_a_second / self.baseline.groups_a_second

    def of_bound(self, figures: ScheduleFigures) -> float:
        """Return completed groups a second as a share of the bound."""
        return figures.groups_a_second / self.bound.groups_a_second

    def speed(self, figures: ScheduleFigures) -> float:
        """Return completed groups a second over those of one segment, update and weight sync included."""
        return figures.groups_a_second / self.baseline.groups_a_second

    def rollout_speed(self, figures: ScheduleFigures) -> float:
        """Return completed groups a second of rollout over those of one segment."""
        return figures.rollout_groups_a_second / self.baseline.rollout_groups_a_second


def plan_schedules(
    setting: PlanSetting, choices: Sequence[Choice] = CHOICES, on_choice: Callable[[Choice], None] = lambda _: None
) -> SchedulePlan:
    """Simulate every choice; the first must be one segment. on_choice: is called after each, for a progress bar.

    Raises UserError as `check_setting` does.
    """
    check_setting(setting)
    planned = []
    with no_full_collections():
        for choice in choices:
            steps = [*setting.simulation(choice.schedule(setting)).steps(setting.played_steps)]
            figures = figures_of(steps, setting.profile, setting.prompts)
            planned.append(Planned(choice, figures, tuple(_reasons(figures, setting))))
            on_choice(choice)
    lengths = length_facts(setting)
    bounds = (bound_of(setting, lengths, carried=carried) for carried in (False, True))
    return SchedulePlan(setting, tuple(planned), lengths, *bounds)


def check_setting(setting: PlanSetting) -> None:
    """Raise UserError when an engine cannot hold one sample, or a limit or the number of steps is not possible."""
    longest, fits = setting.prompt_tokens + setting.max_tokens, setting.profile.kv_tokens
    if fits and longest > fits:
        raise UserError(
            f"kv_tokens={fits}: a prompt and its output take up to {setting.prompt_tokens} + {setting.max_tokens} "
            "tokens, so an engine could not finish a sample; use more GPUs for an engine, or shorter outputs",
            code=ErrorCode.PLAN_INPUT,
            key="kv_tokens",
        )
    if setting.max_versions == 1:
        message = (
            "--max-versions 1: only one segment keeps that, as every other schedule carries samples over; ask for 2"
        )
        raise UserError(message, code=ErrorCode.PLAN_INPUT, key="--max-versions")
    if 0 < setting.steps < 8:
        message = f"--steps {setting.steps}: the second half of the steps is compared; ask for at least 8"
        raise UserError(message, code=ErrorCode.PLAN_INPUT, key="--steps")


def length_facts(setting: PlanSetting) -> LengthFacts:
    """Return the facts of 4,096 groups. Context: prompt + sum l (l - 1) / 2 / sum l over outputs of l tokens."""
    drawn = setting.source.draw(setting.seed, 0, 4096, setting.group)
    lengths = np.minimum(drawn, setting.max_tokens).astype(np.float64)
    context = setting.prompt_tokens + float((lengths * (lengths - 1)).sum() / 2 / lengths.sum())
    cut = float((drawn >= setting.max_tokens).mean())
    return LengthFacts(float(lengths.mean()), float(np.quantile(lengths, 0.95)), cut, context)


def bound_of(setting: PlanSetting, lengths: LengthFacts, *, carried: bool) -> Bound:
    """Return a bound: of all numbers of rows that the slots, and the keys and values at the mean context, allow, the
    one with the least rollout time counts. carried: whether samples in flight are prefilled again at each step. Their
    mean context is that of the drawn tokens, as every row draws one token in a decode step."""
    profile = setting.profile
    fit = int(profile.kv_tokens / lengths.context) if profile.kv_tokens else profile.slots
    tokens = setting.prompts * setting.group * lengths.mean
    prompt = profile.added_seconds(setting.prompt_tokens - 1)
    prompts, spread = setting.prompts * prompt, 1.0 if carried else 0.0

    def rollout_seconds(rows: int) -> float:
        decode = tokens * decode_times(profile.decode, rows, spread).seconds(lengths.context, 1) / rows
        again = profile.prefill_seconds([round(lengths.context)] * rows) if carried else 0.0
        return (decode + prompts) / profile.engines + again

    rollout, rows = min((rollout_seconds(rows), rows) for rows in _row_counts(max(1, min(profile.slots, fit))))
    whole = rollout + profile.learner.at(tokens) + profile.sync_seconds
    return Bound(rows, setting.prompts / whole, setting.prompts / rollout)


def _row_counts(most: int) -> Iterator[int]:
    """Yield all numbers up to `most`, or 512 of them."""
    yield from sorted({*range(most, 0, -max(1, most // 512)), 1})


def _reasons(figures: ScheduleFigures, setting: PlanSetting) -> Iterator[str]:
    if figures.age > setting.max_age:
        yield f"mean age {figures.age:.2f} is above {setting.max_age:g}"
    if setting.max_versions and figures.most_versions > setting.max_versions:
        yield f"a sample has {figures.most_versions} versions, more than {setting.max_versions}"
    if figures.kv_peak > setting.kv_limit:
        yield f"keys and values reach {figures.kv_peak:.0%} of an engine, above {setting.kv_limit:.0%}"
    if figures.batch < 0.97:
        yield f"a step trains only {figures.batch:.0%} of its prompts"
    if figures.batch > 1.25:
        yield f"the batch grows to {figures.batch:.2f} x prompts"
    if not 0.8 < figures.growth < 1.25:
        yield f"the batch is not steady: it changed by {figures.growth - 1:+.0%} in the second half"
