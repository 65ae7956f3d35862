"""Reads from a recipe what memory depends on."""

from __future__ import annotations

from ulorl.config.engine_config import VllmConfig
from ulorl.config.tree import Config
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.learner.ulysses_checks import check_ulysses
from ulorl.models.model_source import ModelSource
from ulorl.planning.engine_memory import EngineSetting, Sharing
from ulorl.planning.learner_memory import LearnerSetting
from ulorl.planning.memory_plan import GB, MemoryPlan, RunSetting, plan_memory
from ulorl.planning.model_sizes import read_sizes


def plan_recipe(config: Config, gpu_memory: float) -> MemoryPlan:
    """Return the memory of a recipe's run on GPUs of `gpu_memory` GB (10^9 bytes), from its model's config.json.

    Raises UserError when config.json cannot be read, the model cannot be planned, its sequences cannot be shared by
    `optim.sequence_parallel` processes, or the recipe leaves the number of processes to torchrun.
    """
    source = ModelSource(config.model.path, config.model.trust_remote_code, config.model.rope)
    learner = learner_setting(config)
    check_ulysses(source.config, learner.sequence, config.model.attention)
    setting = RunSetting(
        learner, engine_setting(config), config.backend.kind, int(gpu_memory * GB), _can_split(source, config)
    )
    return plan_memory(read_sizes(source), setting)


def learner_setting(config: Config) -> LearnerSetting:
    """Return how the learner of a recipe trains. Raises UserError when only torchrun knows the number of processes."""
    backend, optim = config.backend, config.optim
    if backend.kind == "torchrun" and not backend.ranks:
        raise UserError(
            "backend.ranks=0: torchrun decides the number of processes; give it, as in backend.ranks=8",
            code=ErrorCode.CONFIG_MISSING_KEY,
            key="backend.ranks",
        )
    return LearnerSetting(
        ranks=backend.learner_ranks or 1,
        sequence=optim.sequence_parallel,
        dtype=config.model.dtype,
        autocast=optim.autocast == "bfloat16",
        offload=optim.offload,
        recompute=optim.recompute,
        longest=longest_sample(config),
        outputs=config.rollout.max_tokens,
        microbatch_tokens=optim.microbatch_tokens,
        lora_rank=config.model.lora.rank,
        cpu=config.model.device == "cpu",
    )


def engine_setting(config: Config) -> EngineSetting:
    """Return the engines of a recipe."""
    engine = config.engine
    vllm = engine.vllm if engine.kind == "vllm" else VllmConfig()
    return EngineSetting(
        kind=engine.kind,
        number=2 if config.engine_dtype == "bfloat16" else 4,
        engines=config.engine_count,
        tensor_parallel=vllm.tensor_parallel,
        memory_fraction=vllm.memory_fraction,
        slots=engine.slots,
        longest=longest_sample(config),
        sharing=_sharing(config),
        process=vllm.process,
    )


def longest_sample(config: Config) -> int:
    """Return the tokens of the longest prompt with the longest output."""
    return config.data.max_prompt_tokens + config.rollout.max_tokens


def _sharing(config: Config) -> Sharing:
    """Whether the engine runs on GPUs of the learner: rank i is on GPU i, unless one process has `model.device`."""
    engine, backend = config.engine, config.backend
    if backend.kind == "ray":
        return "turns" if backend.colocate else "no"
    if engine.kind == "torch":
        return "together"
    _, _, number = config.model.device.partition(":")
    ranks = backend.learner_ranks or 1
    learner = set(range(ranks)) if ranks > 1 else {int(number or 0)}
    if learner.isdisjoint(engine.vllm.devices or range(engine.vllm.tensor_parallel)):
        return "no"
    return "turns" if engine.vllm.sleep else "together"


def _can_split(source: ModelSource, config: Config) -> bool:
    """Whether several processes may share a sequence of the model, for some number of them."""
    try:
        check_ulysses(source.config, 2, config.model.attention)
    except UserError:
        return False
    return True
