"""The root of the configuration tree, and the combinations of settings that are refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from ulorl.config.backend_config import BackendConfig, LocalBackendConfig
from ulorl.config.data_config import DataConfig
from ulorl.config.engine_config import EngineConfig, TorchEngineConfig
from ulorl.config.fields import MAY_CHANGE, Finding, Natural, Positive, RefusedKeys, StrictConfig
from ulorl.config.key_messages import findings_of
from ulorl.config.layering import add_layer, without_other_kinds
from ulorl.config.model_config import ModelConfig
from ulorl.config.reward_config import MathRewardConfig, RewardConfig
from ulorl.config.training_config import (
    PACKED_MASK_TOKENS,
    EvalConfig,
    LogConfig,
    ObjectiveConfig,
    OptimConfig,
    RolloutConfig,
    RunConfig,
)
from ulorl.config.unions import kind_in, variants_of

_SOURCES = variants_of(DataConfig)


class Config(StrictConfig):
    """The configuration of one run. The defaults are those of the paper's section 4.1."""

    steps: Positive = Field(default=300, description="steps of Algorithm 1", json_schema_extra=MAY_CHANGE)
    seed: Natural = Field(default=0, description="the seed of the samples and of the order of the problems")
    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    backend: BackendConfig = Field(default=LocalBackendConfig(), json_schema_extra=MAY_CHANGE)
    engine: EngineConfig = TorchEngineConfig()
    rollout: RolloutConfig = RolloutConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optim: OptimConfig = OptimConfig()
    reward: RewardConfig = MathRewardConfig()
    data: DataConfig
    eval: EvalConfig = EvalConfig()
    log: LogConfig = Field(default=LogConfig(), json_schema_extra=MAY_CHANGE)

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        found = [*self._impossible_objective(), *self._impossible_engine(), *self._impossible_learner()]
        if found := [*found, *self._impossible_problems()]:
            raise RefusedKeys(*found)
        return self

    def _impossible_objective(self) -> Iterator[Finding]:
        rollout, objective = self.rollout, self.objective
        kind = rollout.schedule.kind
        if objective.importance == "tois" and (rollout.segments > 1 or kind != "segment"):
            found = f"rollout.segments={rollout.segments}" if kind == "segment" else f"rollout.schedule.kind={kind}"
            yield Finding(
                "objective.importance",
                f"tois needs rollout.segments=1 with rollout.schedule.kind=segment (found {found}): otherwise the "
                "tokens of a sample come from several versions; use pois or sais",
            )
        engines = objective.importance in ("tois", "sais")
        corrections = {"tis_cap": objective.tis_cap, "engine_mask.level": objective.engine_mask.level != "off"}
        for key in (key for key, used in corrections.items() if used and engines):
            yield Finding(
                f"objective.{key}",
                "goes with objective.importance=pois or decoupled only: the old policy of "
                f"{objective.importance} is that of the engine, so this ratio is in the loss already",
            )
        newest = objective.importance == "pois"
        if objective.min_prefix and (newest or objective.loss == "gspo"):
            yield Finding(
                "objective.min_prefix",
                f"goes with objective.importance=sais, tois or decoupled and objective.loss=ppo or cispo (found "
                f"{objective.importance} and {objective.loss}): the prefix is weighted by the policies that drew it, "
                "and gspo has one ratio for a whole sample",
            )
        if objective.entropy.kind == "kl_cov" and newest and self.optim.minibatches == 1:
            yield Finding(
                "objective.entropy.kind",
                "kl_cov has no effect with objective.importance=pois and optim.minibatches=1: the old policy is the "
                "one that trains, so the penalty and its gradient are 0; use sais, or more mini-batches",
            )

    def _impossible_engine(self) -> Iterator[Finding]:
        rollout = self.rollout
        yield from self._impossible_ray()
        truncated = rollout.top_p < 1 or rollout.top_k > 0
        if self.engine.kind == "vllm" and truncated and rollout.temperature != 1:
            yield Finding(
                "engine.kind",
                f"vllm with rollout.temperature={rollout.temperature} needs rollout.top_p=1 and rollout.top_k=0: vLLM "
                "gives log-probs either before temperature or after top-p and top-k, and training needs those between",
            )
        if rollout.overlap and self.objective.importance == "decoupled":
            yield Finding(
                "rollout.overlap",
                "does not go with objective.importance=decoupled: the learner trains while the engine decodes, so it "
                "cannot compute log-probs under the weights of the engine; use false",
            )
        sleeps = self.engine.kind == "vllm" and self.engine.vllm.sleep
        if rollout.overlap and (sleeps or (self.backend.kind == "ray" and self.backend.colocate)):
            yield Finding(
                "rollout.overlap",
                "engine and learner work at the same time with overlap, so they cannot take turns on a GPU: set "
                "engine.vllm.sleep=false and backend.colocate=false, or rollout.overlap=false",
            )

    def _impossible_ray(self) -> Iterator[Finding]:
        backend = self.backend
        if backend.kind != "ray":
            return
        if self.engine.kind == "vllm" and self.engine.vllm.transfer in ("ipc", "nccl"):
            yield Finding(
                "engine.vllm.transfer",
                f"{self.engine.vllm.transfer} goes with one engine beside the learner; with backend.kind=ray weights "
                "go through Ray's object store: use auto",
            )
        if not backend.colocate:
            return
        gpus = backend.engines * self.engine.gpus
        if backend.ranks != gpus:
            yield Finding(
                "backend.colocate",
                f"needs backend.ranks = backend.engines x engine.vllm.tensor_parallel = {gpus} "
                f"(found {backend.ranks}): each GPU has a process of the learner and a part of an engine",
            )
        if self.engine.kind == "vllm" and not self.engine.vllm.sleep:
            yield Finding(
                "engine.vllm.sleep",
                "must be true with backend.colocate=true: vLLM frees the GPU's memory while the learner works",
            )

    def _impossible_learner(self) -> Iterator[Finding]:
        optim, model, samples = self.optim, self.model, self.rollout.prompts * self.rollout.group
        flash, autocast = model.attention == "flash_attention_2", optim.autocast == "bfloat16"
        if autocast and model.dtype == "bfloat16":
            yield Finding(
                "optim.autocast",
                "bfloat16 goes with model.dtype=float32: it rounds float32 weights for each product; the weights of "
                "model.dtype=bfloat16 are bfloat16 already",
            )
        if flash and not autocast and model.dtype == "float32":
            yield Finding(
                "model.attention",
                "flash_attention_2 needs bfloat16: set optim.autocast=bfloat16, or for model.lora model.dtype=bfloat16",
            )
        masked = optim.layout == "packed" and not flash and optim.sequence_parallel == 1
        if masked and optim.microbatch_tokens > PACKED_MASK_TOKENS:
            yield Finding(
                "optim.layout",
                f"packed with model.attention={model.attention} needs optim.microbatch_tokens <= {PACKED_MASK_TOKENS} "
                f"(found {optim.microbatch_tokens}): its mask takes tokens x tokens bytes; use flash_attention_2, or "
                "optim.layout=padded, which needs no mask, as does optim.sequence_parallel > 1",
            )
        if optim.minibatches > samples:
            yield Finding(
                "optim.minibatches",
                f"{optim.minibatches} is more than rollout.prompts x rollout.group = {samples} samples of a step; a "
                "mini-batch holds at least one",
            )
        ranks, sequence = self.backend.learner_ranks, optim.sequence_parallel
        if ranks and ranks % sequence:
            yield Finding(
                "optim.sequence_parallel",
                f"{sequence} does not divide the {ranks} processes of the learner (backend.ranks); choose a divisor",
            )
        if (ranks or 1) > 1 and model.lora.rank:
            yield Finding(
                "model.lora.rank",
                f"{model.lora.rank} needs a learner of one process: adapters are not sharded (backend.ranks={ranks})",
            )
        buffer, longest = self.objective.overlong_buffer, self.rollout.max_tokens
        if buffer >= longest or (self.objective.overlong == "soft" and not buffer):
            yield Finding(
                "objective.overlong_buffer",
                f"must be less than rollout.max_tokens={longest}, and more than 0 for objective.overlong=soft; "
                f"found {buffer}",
            )

    def _impossible_problems(self) -> Iterator[Finding]:
        try:
            sources = {"data": self.data, **({"eval.data": self.eval_data()} if self.eval.data else {})}
        except RefusedKeys as error:
            yield from error.findings
            return
        for key, data in sources.items():
            if self.reward.kind in ("countdown", "reasoning_gym", "task") and data.kind != self.reward.kind:
                yield Finding(
                    "reward.kind",
                    f"{self.reward.kind} judges problems of {key}.kind={self.reward.kind} only, found "
                    f"{key}.kind={data.kind}; for files and the hub use reward.kind=math, numeric, exact, choice, "
                    "generative or function",
                )

    @property
    def engine_count(self) -> int:
        """The number of engines of the rollout."""
        return self.backend.engines if self.backend.kind == "ray" else 1

    @property
    def engine_dtype(self) -> Literal["float32", "bfloat16"]:
        """The dtype of the engine's copy of the weights."""
        return self.model.dtype if self.engine.dtype == "auto" else self.engine.dtype

    @property
    def learner_dtype(self) -> Literal["float32", "bfloat16"]:
        """The dtype in which the learner's forward pass computes."""
        return "bfloat16" if self.optim.autocast == "bfloat16" else self.model.dtype

    def eval_data(self) -> DataConfig:
        """Return where the held-out problems come from: `data` with the keys of `eval.data` laid over it.

        Where `eval.data` names another kind, only the keys of `data` that this kind has count.
        """
        try:
            return _DATA.validate_python(add_layer(_SOURCES, self.data.model_dump(), [self.eval.data]))
        except ValidationError as error:
            raise RefusedKeys(*findings_of(error, _SOURCES, ("eval", "data"))) from None


_DATA: TypeAdapter[DataConfig] = TypeAdapter(DataConfig)


def without_other_eval_kinds(
    below: Mapping[str, Any], above: Mapping[str, Any], *, always: bool = False
) -> dict[str, Any]:
    """Return `below` without the keys of `eval.data` that apply only to other kinds of data than the one that `above`
    chooses for the held-out problems.

    This is `layering.without_other_kinds` for a table whose kind, when it names none, is `data.kind`.
    """
    table, chosen = _eval_data(below), _eval_data(above)
    kept = without_other_kinds(
        _SOURCES,
        {"kind": kind_in(_SOURCES, below.get("data")), **table},
        {"kind": kind_in(_SOURCES, above.get("data")), **chosen},
        always=always,
    )
    if kept.keys() >= table.keys():
        return dict(below)
    return {**below, "eval": {**below["eval"], "data": {name: value for name, value in kept.items() if name in table}}}


def _eval_data(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    section = tree.get("eval")
    table = section.get("data") if isinstance(section, Mapping) else None
    return table if isinstance(table, Mapping) else {}
