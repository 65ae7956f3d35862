"""Table 1 of the paper, measured: what rollout schedules bring on this machine.

Equal: the engine, its slots and its weights; the maximum length L; the prompts; the output lengths, which are replayed
from a real distribution; and the batch, N groups a step in steady state. The baseline is one segment in the same
engine, which drops rows that have finished. So completed groups a second are compared, and not steps.

An output ends at its given length, whatever the model draws, and each schedule trains the same P groups in the measured
steps. The steps before, which fill the pools, are played by the same scheduler without a model. The schedules take
turns, a step each, so that all meet the same load of the machine; points of a latency profile come between.

Rollout time is measured. Update time is that of real updates, one in each round, on what one segment trains: seconds a
trained token, the same for all schedules, because they train the same groups. New weights are sent after each step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ulorl.bench.machine_facts import facts
from ulorl.bench.profile_meter import ProfileMeter, Subject, grid
from ulorl.common.progress import SILENT, Bar, ProgressBars
from ulorl.engines.engine import Engine
from ulorl.engines.padding import CPU_PADDING
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.planning.group_lengths import GroupLengths, LogNormalLengths, RecordedLengths
from ulorl.planning.latency_profile import LatencyProfile
from ulorl.planning.output_lengths import TAIL, read_lengths
from ulorl.planning.schedule_plan import Choice, PlanSetting, SchedulePlan, plan_schedules
from ulorl.reproduce.comparison import compare, prediction
from ulorl.reproduce.measured_run import MeasuredRun
from ulorl.reproduce.replayed_lengths import RepeatedLengths, repeated_lengths
from ulorl.reproduce.setups import PROMPT_TOKENS, Setup, make_engine, model_source
from ulorl.reproduce.updates import Updates

CHOICES = (
    *(Choice("segment", segments=count) for count in (1, 2, 4, 8)),
    *(Choice("oversubscribe", factor=factor) for factor in (1.5, 2.0)),
    *(Choice("refill", factor=factor) for factor in (1.0, 2.0)),
)
QUICK_CHOICES = tuple(choice for choice in CHOICES if choice.kind == "segment" or choice.factor == 2)
_LEAST_ROUNDS, _MOST_ROUNDS = 2, 32
_CORRELATION = (
    0.35  # of siblings where a file names no problems: in 6 sources of reasoning models .07 to .75, median .35
)
_PROFILE_SECONDS = 5.0  # of the profile that is measured first: steps of milliseconds need many rounds
_PROFILE_SHARE = 0.15  # of the time from then on, at least: the machine may be slow for part of it
_DRAWS = 16  # of lengths, to choose from


@dataclass(frozen=True)
class Options:
    """What is measured. lengths: a CSV file of output lengths (`read_lengths`); None: a log-normal. rounds: steps of
    each schedule; 0: as many as fit into `minutes`, for each set-up. update: measure updates too. quick: fewer
    schedules and a smaller profile."""

    lengths: Path | None = None
    rounds: int = 0
    minutes: float = 20.0
    update: bool = True
    quick: bool = False

    @property
    def choices(self) -> Sequence[Choice]:
        """The schedules; the first is the baseline."""
        return QUICK_CHOICES if self.quick else CHOICES


def run(setups: Sequence[Setup], options: Options, bars: ProgressBars = SILENT) -> dict[str, Any]:
    """Measure each set-up, one after the other, and return all figures.

    `speedup` is that of the first set-up: completed groups a second of rollout over those of one segment, by number of
    segments, and for oversubscribe and refill with factor 2. Raises UserError for a set-up that cannot be measured and
    an unusable file of lengths, and RuntimeError when a sample is lost.
    """
    about = facts()
    for setup in setups:
        _check(setup)
        _length_source(setup, options.lengths)
    measured = [_measured(setup, options, about, bars) for setup in setups]
    return {"reproduces": "table1", **about, "speedup": measured[0]["speedup"], "setups": measured}


def _check(setup: Setup) -> None:
    if setup.max_tokens % 8:
        message = f"--tokens {setup.max_tokens}: give a multiple of the 8 segments"
        raise UserError(message, code=ErrorCode.BENCH_INPUT, key="--tokens")


def _length_source(setup: Setup, file: Path | None) -> tuple[str, GroupLengths]:
    """Return lengths whose longest one is L, and what they are."""
    most = setup.max_tokens
    if file is None:
        name = (
            "log-normal, median a quarter of it, 90th percentile 4.3 medians as in DeepSeek-R1's production traffic; "
            f"siblings correlate by {_CORRELATION}"
        )
        return name, LogNormalLengths(math.log(most / 4), TAIL, most, _CORRELATION)
    recorded = read_lengths(file)
    longest = int(recorded.tokens.max())
    return f"{recorded.name}, scaled from {longest:,} to {most:,} tokens", RecordedLengths(
        recorded, most / longest, _CORRELATION
    )


def _measured(setup: Setup, options: Options, about: dict[str, Any], bars: ProgressBars) -> dict[str, Any]:
    """Return the figures of one set-up."""
    started = time.perf_counter()
    name, source = _length_source(setup, options.lengths)
    with model_source(setup) as model, closing(make_engine(setup, model)) as engine:
        updates = Updates(setup, model)
        points = grid(setup.slots, PROMPT_TOKENS + setup.max_tokens, quick=options.quick)
        what = f"{setup.model}, {setup.dtype}, {setup.engine} engine"
        subject = Subject(
            engine,
            what,
            model.vocabulary,
            setup.slots,
            setup.prefill_tokens,
            prefill_padding=CPU_PADDING if setup.engine == "torch" else None,
            weights=updates.weights,
        )
        meter = ProfileMeter(subject, points, about)
        meter.warm_up()
        began = time.perf_counter()
        meter.measure(_PROFILE_SECONDS)
        plan = _plan(setup, source, meter.profile(), options.choices)
        left = 60 * options.minutes - (time.perf_counter() - started)
        profile_seconds = max(_PROFILE_SHARE * left, (points.rounds - 1) * meter.seconds / meter.rounds)
        rounds = options.rounds or _rounds_within(left - profile_seconds, plan)
        runs = _begun_runs(setup, plan, _typical_lengths(plan, rounds), model.vocabulary)
        bar = bars.add(setup.model, total=rounds * len(runs))
        for number in range(1, rounds + 1):
            _round(runs, engine, updates, bar, measure_updates=options.update)
            least = 1 + (points.rounds - 1) * number / rounds
            meter.measure(_PROFILE_SHARE * (time.perf_counter() - began), rounds=least)
        bar.remove()
    plan = _plan(setup, source, updates.complete(meter.profile()), options.choices)
    return {
        **asdict(setup),
        "prompt_tokens": PROMPT_TOKENS,
        "lengths": name,
        "rounds": rounds,
        "seconds": round(time.perf_counter() - started),
        **compare(runs, plan, updated=options.update),
        "profile": plan.setting.profile.model_dump(mode="json"),
    }


def _begun_runs(setup: Setup, plan: SchedulePlan, lengths: RepeatedLengths, vocabulary: int) -> dict[str, MeasuredRun]:
    """Return a run of every schedule in steady state, by the schedule's name."""
    runs = {}
    for choice in (one.choice for one in plan.planned):
        schedule = choice.schedule(plan.setting)
        run = MeasuredRun(schedule, lengths, setup.max_tokens, PROMPT_TOKENS, vocabulary, setup.slots)
        run.play()
        runs[choice.name] = run
    return runs


def _typical_lengths(plan: SchedulePlan, rounds: int) -> RepeatedLengths:
    """Return the lengths of the measured steps: of 16 draws, the one with which the planner predicts about the same
    speed-ups as for many steps. In few steps, chance decides which outputs meet in one."""
    setting = plan.setting
    draws = [
        repeated_lengths(setting.source, rounds * setting.prompts, setting.group, setting.max_tokens, seed)
        for seed in range(_DRAWS)
    ]
    of_many = [math.log(plan.rollout_speed(one.figures)) for one in plan.planned]

    def distance(lengths: RepeatedLengths) -> float:
        found = [prediction(one.choice, setting, lengths, rounds)["groups_per_second"] for one in plan.planned]
        return sum(abs(math.log(rate / found[0]) - other) for rate, other in zip(found, of_many, strict=True))

    return min(draws, key=distance)


def _round(
    runs: Mapping[str, MeasuredRun], engine: Engine, updates: Updates, bar: Bar, *, measure_updates: bool
) -> None:
    """Measure a step of every schedule, each with new weights, as in training: they empty an engine's prefix cache.
    Measure an update on what the first schedule, one segment, trains."""
    for index, one in enumerate(runs.values()):
        groups = one.measure(engine)
        bar.advance()
        if measure_updates and not index:
            updates.measure(groups)
        engine.load_weights(updates.weights(), one.version)


def _rounds_within(seconds: float, plan: SchedulePlan) -> int:
    """Return how many rounds fit into `seconds`, from 2 to 32. An update is taken to cost 3 prefills."""
    baseline, profile = plan.baseline, plan.setting.profile
    tokens = baseline.tokens_a_second * baseline.step_seconds
    steps = sum(one.figures.rollout_seconds + profile.sync_seconds for one in plan.planned)
    fit = seconds / (steps + 3 * profile.prefill_seconds([round(tokens)]))
    return min(max(int(fit), _LEAST_ROUNDS), _MOST_ROUNDS)


def _plan(setup: Setup, source: GroupLengths, profile: LatencyProfile, choices: Sequence[Choice]) -> SchedulePlan:
    """Return what the planner says about many steps of this set-up."""
    setting = PlanSetting(
        profile=profile,
        source=source,
        prompts=setup.prompts,
        group=setup.group,
        max_tokens=setup.max_tokens,
        prompt_tokens=PROMPT_TOKENS,
    )
    return plan_schedules(setting, choices)
