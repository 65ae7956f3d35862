"""Memory plans as text: Markdown tables in GB (10^9 bytes) for one GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from ulorl.common.markdown import table
from ulorl.planning.memory_plan import GB, MemoryPlan


def plan_text(plan: MemoryPlan) -> str:
    """Return a plan as Markdown: the learner's memory by phase, the engine's, and what to change if they do not fit."""
    return "\n".join(_lines(plan))


def plan_json(plan: MemoryPlan) -> dict[str, Any]:
    """Return every number of a plan, in bytes."""
    sums = {"parameters": plan.sizes.parameters, "peak": plan.learner.peak, "full_samples": plan.engine.samples}
    return {**asdict(plan), **sums, "gpus": plan.setting.gpus, "fits": plan.fits}


def comparison_table(plans: Mapping[str, MemoryPlan]) -> str:
    """Return the largest parts of several plans, one a row, as docs/cluster.md shows them."""
    head = (
        "run", "learner GPUs", "sequence_parallel", "state", "gathered", "in flight", "checkpoints", "activations",
        "peak", "host", "keys and values of one full sample", "full samples of an engine", "fits",
    )  # fmt: skip
    return table(head, [_row(name, plan) for name, plan in plans.items()], numbers_from=1)


def _row(name: str, plan: MemoryPlan) -> tuple[object, ...]:
    learner, largest, setting = plan.learner, plan.learner.largest, plan.setting
    parts = (learner.state, largest.gathered, largest.in_flight, largest.checkpoints, largest.activations)
    cached = (_gb(plan.engine.sample * setting.engine.tensor_parallel), plan.engine.samples)
    ranks = (setting.learner.ranks, setting.learner.sequence)
    return (name, *ranks, *map(_gb, parts), _gb(learner.peak), _gb(learner.host), *cached, "yes" if plan.fits else "no")


def _lines(plan: MemoryPlan) -> Iterator[str]:
    learner, setting, sizes = plan.learner, plan.setting.learner, plan.sizes
    yield f"{sizes.parameters:,} parameters in {len(sizes.layers)} layers, embedding and head"
    yield (
        f"learner: {setting.ranks} GPUs, {setting.sequence} for each sequence; a micro-batch of {setting.tokens:,} "
        f"tokens a GPU; the longest sample has {setting.longest:,}\n"
    )
    yield _state_table(plan)
    yield ""
    yield _phase_table(plan)
    yield f"\nThe learner's peak is {_gb(learner.peak)} GB a GPU, in the phase: {learner.largest.name}."
    if learner.host:
        yield f"The machines of the learner hold {_gb(learner.host * setting.ranks)} GB for AdamW's step, in all."
    yield _engine_line(plan)
    yield from _verdict(plan)


def _state_table(plan: MemoryPlan) -> str:
    learner = plan.learner
    parts = (learner.parameters, learner.gradients, learner.moments, learner.state, learner.host)
    head = ("GB a GPU", "weights", "gradients", "AdamW", "state", "in the machine's memory")
    return table(head, [("learner", *map(_gb, parts))], numbers_from=1)


def _phase_table(plan: MemoryPlan) -> str:
    learner = plan.learner
    head = ("GB a GPU, by phase", "state", "gathered", "gradients in flight", "layer inputs", "activations", "sum")
    rows = [
        (
            phase.name,
            *map(_gb, (learner.state, phase.gathered, phase.in_flight, phase.checkpoints, phase.activations)),
            f"**{_gb(learner.state + phase.total)}**" if phase is learner.largest else _gb(learner.state + phase.total),
        )
        for phase in learner.phases
    ]
    return table(head, rows, numbers_from=1)


def _engine_line(plan: MemoryPlan) -> str:
    engine, setting = plan.engine, plan.setting.engine
    where = {"no": "GPUs of its own", "turns": "the learner's GPUs, in turns", "together": "the learner's GPU"}
    return (
        f"{setting.engines} x engine {setting.kind}: {setting.tensor_parallel} GPUs each ({where[setting.sharing]}); "
        f"{_gb(engine.weights)} GB of weights and {_gb(engine.cache)} GB for keys and values a GPU; a sample of "
        f"{setting.longest:,} tokens takes {_gb(engine.sample)} GB; {engine.samples} full samples at once, "
        f"{setting.slots} slots."
    )


def _verdict(plan: MemoryPlan) -> Iterator[str]:
    if plan.fits:
        yield f"\nIt fits: {plan.setting.gpus} GPUs of {plan.setting.gpu / GB:g} GB."
        return
    yield from ("\nIt does not fit:", *(f"- {problem}" for problem in plan.problems))
    if not plan.changes:
        yield "No change of the recipe that was tried makes it fit; use larger GPUs, or shorter outputs."
        return
    yield "What to change, the smallest change first:"
    for change in plan.changes:
        yield f"- {' '.join(change.overrides)}: {_gb(change.peak)} GB a GPU, {change.gpus} GPUs"


def _gb(count: int) -> str:
    return f"{count / GB:.1f}" if count >= GB / 10 or not count else f"{count / GB:.2g}"
