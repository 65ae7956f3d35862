"""Plans of rollout schedules as text: Markdown tables, a recommendation with its reasons, and lines for a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from ulorl.common.markdown import table
from ulorl.planning.latency_profile import ASSUMPTION
from ulorl.planning.schedule_plan import AS_FAST, Choice, Planned, PlanSetting, SchedulePlan


def schedule_plan_text(plan: SchedulePlan) -> str:
    """Return a plan as text."""
    return "\n".join(_lines(plan))


def schedule_plan_json(plan: SchedulePlan) -> dict[str, Any]:
    """Return every number of a plan. Times in seconds; speed: over one segment, of groups a second."""
    setting = plan.setting
    return {
        "profile": setting.profile.model_dump(),
        "setting": {
            name: getattr(setting, name)
            for name in (
                "prompts",
                "group",
                "max_tokens",
                "prompt_tokens",
                "seed",
                "max_age",
                "max_versions",
                "window",
                "order",
                "kv_limit",
            )
        }
        | {"steps": setting.played_steps},
        "lengths": asdict(plan.lengths),
        "bound": asdict(plan.bound) | {"speed": plan.bound_speed},
        "carried_bound": asdict(plan.carried_bound) | {"speed": plan.carried_bound_speed},
        "schedules": [
            {"name": one.choice.name, **asdict(one.choice), **asdict(one.figures)}
            | {"speed": plan.speed(one.figures), "rollout_speed": plan.rollout_speed(one.figures)}
            | {"of_bound": plan.of_bound(one.figures), "against": one.reasons}
            for one in plan.planned
        ],
        "recommended": plan.recommended.choice.name if plan.recommended else None,
    }


def recipe_lines(choice: Choice, setting: PlanSetting) -> str:
    """Return the lines of a recipe that choose a schedule, with what every schedule of the plan keeps."""
    kept = _kept(setting)
    if choice.kind == "segment":
        lines = ["[rollout]", f"segments = {choice.segments}", "", "[rollout.schedule]", 'kind = "segment"', *kept]
    else:
        lines = ["[rollout.schedule]", f'kind = "{choice.kind}"', f"factor = {choice.factor:g}", *kept]
    return "\n".join(lines)


def _kept(setting: PlanSetting) -> list[str]:
    kept = [f"max_versions = {setting.max_versions}"] if setting.max_versions else []
    kept += [f"window = {setting.window}"] if setting.window else []
    return kept + ([f'order = "{setting.order}"'] if setting.order != "fifo" else [])


def _lines(plan: SchedulePlan) -> Iterator[str]:
    yield from _setting(plan)
    yield ""
    yield _speeds(plan)
    yield ""
    yield _costs(plan)
    yield ""
    yield from _verdict(plan)


def _setting(plan: SchedulePlan) -> Iterator[str]:
    setting, profile, base = plan.setting, plan.setting.profile, plan.baseline
    memory = (
        f"keys and values of {profile.kv_tokens:,} tokens" if profile.kv_tokens else "any number of keys and values"
    )
    yield f"profile: {profile.name}"
    if assumed := [name for name, source in profile.sources.items() if source.lower().startswith(ASSUMPTION)]:
        yield f"assumptions, not measurements: {', '.join(assumed)}"
    yield (
        f"{setting.prompts} prompts x {setting.group} samples a step; {profile.engines} engines, each with "
        f"{profile.slots} slots and {memory}"
    )
    yield (
        f"outputs: mean {plan.lengths.mean:,.0f} tokens, 95th percentile {plan.lengths.p95:,.0f}, "
        f"{plan.lengths.cut:.1%} reach the maximum of {setting.max_tokens:,}"
    )
    yield (
        f"one segment: {base.step_seconds:,.1f} s a step, of them {base.learner_seconds:,.1f} for the update and "
        f"{profile.sync_seconds:,.1f} for the weight sync; {base.groups_a_second:.4g} groups a second"
    )
    yield (
        f"bound: {plan.bound_speed:.2f} x one segment, if every engine always decodes {plan.bound.rows} rows, and "
        f"update and weight sync stay; {plan.carried_bound_speed:.2f} x at {plan.carried_bound.rows} rows, if all "
        "samples in flight are computed again at each step, as new weights need it"
    )
    yield f"every schedule: {', '.join(_kept(setting)) or 'no limit on versions, no window, first in, first out'}"


def _speeds(plan: SchedulePlan) -> str:
    head = ("schedule", "groups/s", "x one segment", "rollout alone", "of the bound", "mean age", "most versions",
            "first 8 steps: length", "KV peak", "")  # fmt: skip
    return table(head, [_speed_row(plan, one) for one in plan.planned], numbers_from=1)


def _speed_row(plan: SchedulePlan, one: Planned) -> tuple[object, ...]:
    f = one.figures
    note = "recommended" if one is plan.recommended else "" if not one.reasons else "not within the limits"
    return (
        one.choice.name, f"{f.groups_a_second:.4g}", f"{plan.speed(f):.2f}", f"{plan.rollout_speed(f):.2f}",
        f"{plan.of_bound(f):.0%}", f"{f.age:.2f}", f.most_versions, f"{f.first_bias:.2f}",
        f"{f.kv_peak:.0%}" if plan.setting.profile.kv_tokens else "-", note,
    )  # fmt: skip


def _costs(plan: SchedulePlan) -> str:
    head = ("schedule", "step s", "rollout s", "trained tokens/s", "decode steps / 1,000 tokens", "prefilled / token",
            "again / token", "prefill time", "idle", "rows", "occupancy", "preempted / step", "versions", "length",
            "batch", "ramp steps")  # fmt: skip
    return table(head, [_cost_row(one) for one in plan.planned], numbers_from=1)


def _cost_row(one: Planned) -> tuple[object, ...]:
    f = one.figures
    return (
        one.choice.name, f"{f.step_seconds:.4g}", f"{f.rollout_seconds:.4g}", f"{f.tokens_a_second:,.0f}",
        f"{f.decode_steps:.2f}", f"{f.prefill:.3f}", f"{f.again:.3f}", f"{f.prefill_time:.1%}", f"{f.idle:.0%}",
        f"{f.rows:.1f}", f"{f.occupancy:.0%}", f"{f.preemptions:.1f}", f"{f.versions:.2f}", f"{f.bias:.2f}",
        f"{f.batch:.2f}", f.ramp,
    )  # fmt: skip


def _verdict(plan: SchedulePlan) -> Iterator[str]:
    setting, best, fastest = plan.setting, plan.recommended, plan.fastest
    for one in plan.planned:
        if one.reasons:
            yield f"{one.choice.name}: {'; '.join(one.reasons)}"
    if best is None:
        yield "\nNo schedule is within the limits. Allow a higher age or more versions, or more memory for the engines."
        return
    yield (
        f"\nRecommended: {best.choice.name}, {plan.speed(best.figures):.2f} x one segment at a mean age of "
        f"{best.figures.age:.2f}, {plan.of_bound(best.figures):.0%} of the bound."
    )
    yield (
        f"Of the schedules with a mean age up to {setting.max_age:g} and keys and values up to "
        f"{setting.kv_limit:.0%} of an engine, whose batch is steady, it trains the youngest tokens among those with "
        f"at least {AS_FAST:.0%} of the highest speed."
    )
    if fastest is not best and fastest.reasons:
        yield (
            f"Without the limits, {fastest.choice.name} is the fastest: {plan.speed(fastest.figures):.2f} x one "
            f"segment at a mean age of {fastest.figures.age:.2f}, {plan.of_bound(fastest.figures):.0%} of the bound."
        )
    yield f"\n{recipe_lines(best.choice, setting)}"
