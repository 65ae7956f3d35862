"""Whether a run's learner and engines fit their GPUs, and the smallest change of the recipe that makes them fit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from ulorl.planning.engine_memory import EngineMemory, EngineSetting, engine_memory
from ulorl.planning.learner_memory import LearnerMemory, LearnerSetting, learner_memory
from ulorl.planning.model_sizes import ModelSizes

GB = 10**9
RESERVE = 0.05  # of a GPU: the CUDA context, NCCL's buffers, and what the allocator cannot use
LORA_RANK = 16
_MOST_RANKS = 64


@dataclass(frozen=True)
class RunSetting:
    """How a run trains and decodes, and the bytes of one GPU.

    backend: `backend.kind`. heads_split: whether several processes may share a sequence; models with linear attention,
    for example, do not allow it.
    """

    learner: LearnerSetting
    engine: EngineSetting
    backend: Literal["local", "torchrun", "ray"]
    gpu: int
    heads_split: bool = True

    @property
    def gpus(self) -> int:
        """The GPUs that the run takes."""
        return self.learner.ranks + self.engine.gpus


@dataclass(frozen=True)
class Change:
    """Overrides of a recipe that make a run fit, the GPUs that it then takes, and the learner's peak in bytes."""

    overrides: tuple[str, ...]
    gpus: int
    peak: int


@dataclass(frozen=True)
class MemoryPlan:
    """The memory of a run. problems: why it does not fit; none if it does. changes: what to change then, the smallest
    change first; none is known for a run without problems, and for one that no change makes fit."""

    setting: RunSetting
    sizes: ModelSizes
    learner: LearnerMemory
    engine: EngineMemory
    problems: tuple[str, ...]
    changes: tuple[Change, ...]

    @property
    def fits(self) -> bool:
        """Whether learner and engines fit their GPUs."""
        return not self.problems


def plan_memory(sizes: ModelSizes, setting: RunSetting) -> MemoryPlan:
    """Return the memory of a run, and what to change if it does not fit."""
    learner, engine, problems = _measured(sizes, setting)
    changes = tuple(itertools.islice(_changes(sizes, setting), 3)) if problems else ()
    return MemoryPlan(setting, sizes, learner, engine, problems, changes)


def _measured(sizes: ModelSizes, setting: RunSetting) -> tuple[LearnerMemory, EngineMemory, tuple[str, ...]]:
    learner = learner_memory(sizes, setting.learner)
    engine = engine_memory(sizes, setting.engine, setting.gpu)
    return learner, engine, tuple(_problems(setting, learner, engine))


def _problems(setting: RunSetting, learner: LearnerMemory, engine: EngineMemory) -> Iterator[str]:
    usable, sharing = int(setting.gpu * (1 - RESERVE)), setting.engine.sharing
    of = f"of the {usable / GB:.1f} GB that are usable ({setting.gpu / GB:g} GB less {RESERVE:.0%})"
    resident = learner.parameters + learner.moments  # of a learner that waits for the engine
    if learner.peak > usable:
        yield f"the learner needs {learner.peak / GB:.1f} GB a GPU {of}"
    elif sharing == "together" and learner.peak + engine.total > usable:
        both = f"{learner.peak / GB:.1f} GB and the engine {engine.total / GB:.1f} GB"
        yield f"learner and engine share a GPU: the learner needs {both} {of}"
    elif sharing == "turns" and resident + engine.total > usable:
        both = f"{resident / GB:.1f} GB meanwhile and the engine {engine.total / GB:.1f} GB"
        yield f"the engine decodes on the learner's GPU: weights and moments take {both} {of}"
    if sharing == "no" and engine.total > (usable if setting.engine.kind == "torch" else setting.gpu):
        yield f"the engine needs {engine.total / GB:.1f} GB a GPU {of}"
    if not engine.samples:
        yield (
            f"the engine's cache of {engine.cache / GB:.1f} GB a GPU holds no full sample: keys and values of "
            f"{setting.engine.longest:,} tokens take {engine.sample / GB:.1f} GB"
        )


@dataclass(frozen=True)
class _Step:
    """One change: how far it goes from the recipe, the override, and the setting with it."""

    cost: float
    override: str
    setting: RunSetting


def _changes(sizes: ModelSizes, setting: RunSetting) -> Iterator[Change]:
    """Yield the changes that make the run fit, the smallest first, without those that contain an earlier one.

    What only takes time comes first, then what takes GPUs, then LoRA, which changes what is trained.
    """
    found: list[set[str]] = []
    for _, overrides, changed in sorted(_combinations(sizes, setting), key=lambda each: each[:2]):
        keys = {override.split("=")[0] for override in overrides}
        if any(earlier <= keys for earlier in found):
            continue
        learner, _engine, problems = _measured(sizes, changed)
        if not problems:
            found.append(keys)
            yield Change(overrides, changed.gpus, learner.peak)


def _combinations(sizes: ModelSizes, setting: RunSetting) -> Iterator[tuple[float, tuple[str, ...], RunSetting]]:
    """Yield the sum of costs, the overrides, and the setting of every combination of changes."""
    states: list[tuple[float, tuple[str, ...], RunSetting]] = [(0.0, (), setting)]
    for axis in (_more_ranks, _sequence, _recompute, _autocast, _offload, _microbatch, _engine_share, _lora):
        states += [
            (cost + step.cost, (*overrides, step.override), step.setting)
            for cost, overrides, state in states
            for step in axis(sizes, state)
        ]
    yield from (state for state in states if state[1] and not state[2].learner.ranks % state[2].learner.sequence)


def _more_ranks(_sizes: ModelSizes, setting: RunSetting) -> Iterator[_Step]:
    ranks, kind = setting.learner.ranks, "" if setting.backend != "local" else "backend.kind=torchrun "
    alone = setting.backend != "ray" and setting.engine.kind == "vllm" and not setting.engine.process
    process = " engine.vllm.process=true" if alone else ""
    for doublings in range(1, 7) if not setting.learner.lora_rank else ():
        if (more := ranks * 2**doublings) <= _MOST_RANKS:
            changed = replace(setting, learner=replace(setting.learner, ranks=more))
            yield _Step(8.0 * doublings, f"{kind}backend.ranks={more}{process}", changed)


def _sequence(sizes: ModelSizes, setting: RunSetting) -> Iterator[_Step]:
    learner = setting.learner
    for doublings in range(1, 7):
        sequence = learner.sequence * 2**doublings
        shared = sizes.kv_heads % sequence == 0 or sequence % sizes.kv_heads == 0
        if setting.heads_split and learner.ranks % sequence == 0 and sizes.query_heads % sequence == 0 and shared:
            changed = replace(setting, learner=replace(learner, sequence=sequence))
            yield _Step(2 + doublings / 10, f"optim.sequence_parallel={sequence}", changed)


def _recompute(_sizes: ModelSizes, setting: RunSetting) -> Iterator[_Step]:
    if not setting.learner.recompute:
        yield _Step(1, "optim.recompute=true", replace(setting, learner=replace(setting.learner, recompute=True)))


def _autocast(_sizes: ModelSizes, setting: RunSetting) -> Iterator[_Step]:
    if setting.learner.dtype == "float32" and not setting.learner.autocast:
        changed = replace(setting, learner=replace(setting.learner, autocast=True))
        yield _Step(2, "optim.autocast=bfloat16", changed)


def _offload(_sizes: ModelSizes, setting: RunSetting) -> Iterator[_Step]:
    if not setting.learner.offload:
        yield _Step(4, "optim.offload=true", replace(setting, learner=replace(setting.learner, offload=True)))


def _microbatch(_sizes: ModelSizes, setting: RunSetting) -> Iterator[_Step]:
    """A micro-batch of the longest sample alone: more samples at once only save time."""
    learner = setting.learner
    if (least := -(-learner.longest // learner.sequence)) < learner.microbatch_tokens:
        changed = replace(setting, learner=replace(learner, microbatch_tokens=least))
        yield _Step(1, f"optim.microbatch_tokens={least}", changed)


def _engine_share(_sizes: ModelSizes, setting: RunSetting) -> Iterator[_Step]:
    engine = setting.engine
    if engine.kind == "torch":
        for halvings in range(1, 8):
            if slots := engine.slots >> halvings:
                changed = replace(setting, engine=replace(engine, slots=slots))
                yield _Step(2 + halvings / 10, f"engine.slots={slots}", changed)
    elif engine.sharing != "no":
        for tenths in range(int(engine.memory_fraction * 10 - 0.5), 1, -1):
            changed = replace(setting, engine=replace(engine, memory_fraction=tenths / 10))
            cost = 3 + engine.memory_fraction - tenths / 10
            yield _Step(cost, f"engine.vllm.memory_fraction={tenths / 10}", changed)
    else:
        for parallel in (engine.tensor_parallel * 2, engine.tensor_parallel * 4):
            changed = replace(setting, engine=replace(engine, tensor_parallel=parallel))
            yield _Step(6.0 * parallel / engine.tensor_parallel, f"engine.vllm.tensor_parallel={parallel}", changed)


def _lora(_sizes: ModelSizes, setting: RunSetting) -> Iterator[_Step]:
    if not setting.learner.lora_rank and setting.learner.ranks == 1:  # adapters are not sharded
        changed = replace(setting, learner=replace(setting.learner, lora_rank=LORA_RANK))
        yield _Step(20, f"model.lora.rank={LORA_RANK}", changed)
