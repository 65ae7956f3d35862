"""The figures of Table 1: what was measured of each schedule, and what the planner says of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulorl.common.intervals import mean_interval
from ulorl.common.markdown import table
from ulorl.planning.rollout_simulation import RolloutSimulation, Setting
from ulorl.planning.schedule_plan import Bound, Choice, PlanSetting, SchedulePlan
from ulorl.reproduce.measured_run import PLAYED_STEPS, MeasuredRun
from ulorl.reproduce.replayed_lengths import RepeatedLengths

REPORTED = 2.0  # the factor of oversubscribe and refill in `speedup`


def compare(runs: Mapping[str, MeasuredRun], plan: SchedulePlan, *, updated: bool) -> dict[str, Any]:
    """Return the figures of every schedule, by its name, with the first one as the baseline.

    plan: of these schedules, with the profile that was measured between their steps. updated: whether that includes
    updates. The planner predicts the measured steps, which have the same lengths, and a steady state of many other
    steps, in which its bound holds.
    """
    figures = {one.choice.name: _figures(runs[one.choice.name], one.choice, plan, updated) for one in plan.planned}
    baseline = next(iter(figures.values()))
    for planned in plan.planned:
        one = figures[planned.choice.name]
        for part in ("rollout", "step", "predicted"):
            if one[part]:
                one[part]["speedup"] = one[part]["groups_per_second"] / baseline[part]["groups_per_second"]
        one["predicted"]["error"] = one["predicted"]["speedup"] / one["rollout"]["speedup"] - 1
        one["predicted"]["speedup_of_many_steps"] = plan.rollout_speed(planned.figures)
        share = uncertain_share(_paired_seconds(one), _paired_seconds(baseline)) if one is not baseline else 0.0
        one["rollout"]["speedup_half_interval"] = None if share is None else share * one["rollout"]["speedup"]
    best = max(one["rollout"]["speedup"] for one in figures.values())
    lengths = runs[plan.planned[0].choice.name].lengths.lengths
    return {
        "mean_length": float(lengths.mean()),
        "speedup": _speedup(plan, figures),
        "bound": _bound_figures(plan, plan.bound, best),
        "carried_bound": _bound_figures(plan, plan.carried_bound, best),
        "schedules": figures,
    }


def uncertain_share(own: NDArray[np.float64], baseline: NDArray[np.float64]) -> float | None:
    """Return half the 95% interval of a measured speed-up, as a share of it; None where it is unknown.

    own, baseline: measured and predicted seconds of every step, [2, rounds]. Steps differ in their work, which the
    predicted seconds stand for, so the error of a step is its distance from the mean ratio of measured and predicted
    seconds. The two steps of a round met the same load and are compared with each other.
    """
    half = mean_interval(_residuals(*baseline) - _residuals(*own)).high
    return half if math.isfinite(half) else None


def _residuals(measured: NDArray[np.float64], predicted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what each step adds to the error of the ratio estimator sum(measured) / sum(predicted), as a share of
    it; the mean is 0."""
    found: NDArray[np.float64] = measured / measured.mean() - predicted / predicted.mean()
    return found


def _paired_seconds(figures: Mapping[str, Any]) -> NDArray[np.float64]:
    pair: tuple[Sequence[float], ...] = figures["seconds_of_steps"], figures["predicted"]["seconds_of_steps"]
    return np.array(pair)


def _bound_figures(plan: SchedulePlan, bound: Bound, best: float) -> dict[str, float]:
    speedup = bound.rollout_groups_a_second / plan.baseline.rollout_groups_a_second
    return {"rows": bound.rows, "speedup": speedup, "reached": best / speedup}


def _speedup(plan: SchedulePlan, figures: Mapping[str, Any]) -> dict[str, float]:
    """Return the speed-ups of rollout time that Table 1 is about: by segments, and with factor 2."""
    found = {}
    for choice in (one.choice for one in plan.planned[1:]):
        speedup = round(figures[choice.name]["rollout"]["speedup"], 3)
        if choice.kind == "segment":
            found[str(choice.segments)] = speedup
        elif choice.factor == REPORTED:
            found[choice.kind] = speedup
    return found


def _figures(run: MeasuredRun, choice: Choice, plan: SchedulePlan, updated: bool) -> dict[str, Any]:
    """Return the figures of one schedule, without ratios to others."""
    sums, profile, setting = run.measured, plan.setting.profile, plan.setting
    computed = sums.decode_tokens + sums.prefill_tokens
    whole = sums.seconds + sum(
        profile.learner.at(step.trained_tokens) + profile.sync_seconds for step in run.steps if step.groups
    )
    return {
        "steps": sums.steps,
        "groups": sums.groups,
        "trained_tokens": sums.trained_tokens,
        "rollout": _rates(sums.seconds, run),
        "step": _rates(whole, run) if updated else None,
        "predicted": prediction(choice, setting, run.lengths, sums.steps),
        "decode_steps": sums.decode_steps,
        "prefill_tokens": sums.prefill_tokens,
        "decode_steps_per_1000_trained_tokens": 1000 * sums.decode_steps / sums.trained_tokens,
        "prefill_again_share": sums.again_tokens / computed,
        "mean_age": sums.age_tokens / sums.trained_tokens,
        "mean_versions": sums.version_counts / sums.samples,
        "most_versions": sums.most_versions,
        "mean_rows": sums.decode_tokens / sums.decode_steps,
        "occupancy": sums.decode_tokens / sums.decode_steps / setting.profile.slots,
        "length_bias_of_first_steps": run.first_length_bias,
        "seconds_of_steps": [round(step.seconds, 4) for step in run.steps],
    }


def _rates(seconds: float, run: MeasuredRun) -> dict[str, float]:
    sums = run.measured
    return {
        "seconds_per_step": seconds / sums.steps,
        "groups_per_second": sums.groups / seconds,
        "trained_tokens_per_second": sums.trained_tokens / seconds,
    }


def prediction(choice: Choice, setting: PlanSetting, lengths: RepeatedLengths, steps: int) -> dict[str, Any]:
    """Return what the planner says of `steps` steps after those that are played, with the same lengths."""
    same = Setting(setting.profile, setting.max_tokens, setting.prompt_tokens, lengths.of_group)
    measured = [*RolloutSimulation(choice.schedule(setting), same).steps(PLAYED_STEPS + steps)][PLAYED_STEPS:]
    seconds = sum(step.rollout_seconds for step in measured)
    return {
        "seconds_per_step": seconds / len(measured),
        "groups_per_second": sum(step.groups for step in measured) / seconds,
        "decode_steps": sum(engine.decode_steps for step in measured for engine in step.engines),
        "prefill_tokens": sum(engine.prefill_tokens for step in measured for engine in step.engines),
        "seconds_of_steps": [round(step.rollout_seconds, 5) for step in measured],
    }


def tables(figures: Mapping[str, Any]) -> str:
    """Return what `table1.run` found as Markdown: where it was measured, and tables of each set-up."""
    where = (
        f"{figures['date']}, {figures['cores']} cores of {figures['processor']} ({figures['capability']}), "
        f"{figures['threads']} threads, load average {figures['load_average']} before"
    )
    return "\n\n".join([where, *(part for setup in figures["setups"] for part in _setup_tables(setup))])


def _setup_tables(setup: Mapping[str, Any]) -> list[str]:
    bound, carried = setup["bound"], setup["carried_bound"]
    about = (
        f"**{setup['model']}**, {setup['dtype']}, {setup['engine']} engine with {setup['slots']} slots. "
        f"{setup['prompts']} groups a step of {setup['group']} samples, at most {setup['max_tokens']} tokens, mean "
        f"{setup['mean_length']:g} ({setup['lengths']}). {setup['rounds']} measured steps of each schedule. "
        "Speed-ups are completed groups a second over those of one segment, ± half their 95% interval over the steps."
    )
    limit = (
        f"The planner's bound of rollout time, {bound['rows']} rows always decoding and no sample prefilled twice: "
        f"{bound['speedup']:.2f}; the fastest schedule reaches {bound['reached']:.0%} of it. With "
        f"{carried['rows']} rows that are prefilled again at each step, as new weights need it: "
        f"{carried['speedup']:.2f}, of which it reaches {carried['reached']:.0%}."
    )
    schedules = setup["schedules"].items()
    return [about, _speed_table(schedules), _age_table(schedules), limit, _profile_table(setup["profile"])]


def _speed_table(schedules: Any) -> str:
    head = (
        "schedule", "speed-up, rollout", "predicted", "of many steps", "speed-up, whole step", "groups/s, rollout",
        "trained tokens/s, rollout", "whole step", "rollout s a step", "whole step s",
    )  # fmt: skip
    rows = []
    for name, one in schedules:
        rollout, step, predicted = one["rollout"], one["step"] or {}, one["predicted"]
        rows.append(
            (
                name,
                _speedup_cell(rollout),
                f"{predicted['speedup']:.2f} ({predicted['error']:+.0%})",
                f"{predicted['speedup_of_many_steps']:.2f}",
                _cell(step.get("speedup"), ".2f"),
                f"{rollout['groups_per_second']:.3g}",
                f"{rollout['trained_tokens_per_second']:.3g}",
                _cell(step.get("trained_tokens_per_second"), ".3g"),
                f"{rollout['seconds_per_step']:.3g}",
                _cell(step.get("seconds_per_step"), ".3g"),
            )
        )
    return table(head, rows, numbers_from=1)


def _speedup_cell(rollout: Mapping[str, Any]) -> str:
    half = rollout["speedup_half_interval"]
    return f"{rollout['speedup']:.2f}" + (f" ± {half:.2f}" if half else "")


def _age_table(schedules: Any) -> str:
    head = (
        "schedule", "groups", "decode steps per 1,000 trained tokens", "prefilled again", "rows", "occupancy",
        "mean age", "versions, mean", "most", "length bias, first 8 steps",
    )  # fmt: skip
    rows = [
        (
            name,
            one["groups"],
            f"{one['decode_steps_per_1000_trained_tokens']:.0f}",
            f"{one['prefill_again_share']:.0%}",
            f"{one['mean_rows']:.1f}",
            f"{one['occupancy']:.0%}",
            f"{one['mean_age']:.2f}",
            f"{one['mean_versions']:.2f}",
            one["most_versions"],
            _cell(one["length_bias_of_first_steps"], ".2f"),
        )
        for name, one in schedules
    ]
    return table(head, rows, numbers_from=1)


def _profile_table(profile: Mapping[str, Any]) -> str:
    """Return the decode step times, and what a row costs there: where a row is nearly free, doubling the rows does not
    double them."""
    decode, prefill = profile["decode"], profile["prefill"]
    head = ("rows", *(f"ms a step at {context} tokens" for context in decode["contexts"]), "ms a token")
    rows = [
        (count, *(f"{1000 * s:.1f}" for s in line), f"{1000 * line[0] / count:.1f}")
        for count, line in zip(decode["rows"], decode["seconds"], strict=True)
    ]
    rates = (f"{1000 * s / n:.2f} at {n}" for n, s in zip(prefill["tokens"], prefill["seconds"], strict=True))
    after = (
        f"Prefill, ms a token: {', '.join(rates)} tokens. Weight sync: {profile['sync_seconds']:.3g} s. Update: "
        f"{_cell(_learner_rate(profile['learner']), '.2f')} ms a trained token."
    )
    return f"{table(head, rows, numbers_from=0)}\n\n{after}"


def _learner_rate(learner: Mapping[str, Any]) -> float | None:
    return 1000 * learner["seconds"][0] / learner["tokens"][0] if learner["tokens"] else None


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
