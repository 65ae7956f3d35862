"""What `ulorl plan rollout` plans: a profile, a recipe, changes of both, and lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ulorl.config.loading import load, parse_override
from ulorl.config.tree import Config
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.planning.group_lengths import GroupLengths, RecordedLengths, log_normal_lengths
from ulorl.planning.latency_profile import LatencyProfile, Workload, read_profile
from ulorl.planning.output_lengths import read_lengths
from ulorl.planning.schedule_plan import CHOICES, Choice


def read_inputs(profile: str, arguments: Sequence[str]) -> tuple[LatencyProfile, Config | None]:
    """Return a profile with its workload, and the recipe where there is one.

    profile: a preset or a file. arguments: recipes and `key=value` changes, of keys of the profile or of the recipe. A
    recipe's prompts, group, max_tokens, slots and engines replace the profile's. Raises UserError.
    """
    recipes = [argument for argument in arguments if "=" not in argument]
    changes, overrides = list[Mapping[str, Any]](), list[str]()
    for argument in arguments:
        if "=" in argument:
            change = parse_override(argument)
            if next(iter(change)) in LatencyProfile.model_fields:
                changes.append(change)
            else:
                overrides.append(argument)
    config = load(recipes, overrides) if recipes or overrides else None
    return read_profile(profile, [*([_of_recipe(config)] if config else []), *changes]), config


def _of_recipe(config: Config) -> dict[str, Any]:
    rollout = config.rollout
    size = {"prompts": rollout.prompts, "group": rollout.group, "max_tokens": rollout.max_tokens}
    source = {"slots": "recipe", "engines": "recipe", "workload": "recipe"}
    return {"slots": config.engine.slots, "engines": config.engine_count, "workload": size, "sources": source}


def workload_of(profile: LatencyProfile) -> Workload:
    """Return the workload of a profile. Raises UserError when neither it nor a recipe has one."""
    if profile.workload:
        return profile.workload
    raise UserError(
        f"the profile {profile.name!r} has no workload; name a recipe, or set workload.prompts, workload.group and "
        "workload.max_tokens, as in workload.prompts=128",
        code=ErrorCode.PLAN_INPUT,
        key="workload",
    )


def lengths_source(workload: Workload, file: Path | None, scale: float) -> GroupLengths:
    """Return the lengths of a CSV file, or the log-normal of the workload. scale: multiplies all. Raises UserError."""
    if file:
        return RecordedLengths(read_lengths(file), scale, workload.correlation)
    if workload.mean and workload.p95:
        cap, mean, p95 = workload.max_tokens, workload.mean * scale, workload.p95 * scale
        return log_normal_lengths(mean, p95, cap, workload.correlation)
    raise UserError(
        "no output lengths are given; name a CSV file with --lengths FILE, or set workload.mean=TOKENS and "
        "workload.p95=TOKENS",
        code=ErrorCode.PLAN_INPUT,
        key="--lengths",
    )


def choices_of(config: Config | None, max_tokens: int) -> list[Choice]:
    """Return the choices to compare: all that the maximum length allows, since segments divide it, and the recipe's."""
    choices = [choice for choice in CHOICES if max_tokens % choice.segments == 0]
    if config:
        schedule = config.rollout.schedule
        own = (
            Choice("segment", segments=config.rollout.segments)
            if schedule.kind == "segment"
            else Choice(schedule.kind, factor=schedule.factor)
        )
        choices += [] if own in choices else [own]
    return choices


def not_simulated(config: Config) -> list[str]:
    """Return the keys of a recipe that change its rollout and that the simulation leaves out."""
    schedule = config.rollout.schedule
    set_to = {
        "rollout.overlap": config.rollout.overlap,
        "rollout.schedule.batch_tokens": schedule.kind != "segment" and schedule.batch_tokens,
    }
    return [key for key, value in set_to.items() if value]
