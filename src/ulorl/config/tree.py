"""The root of the configuration tree, and the combinations of settings that are refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from ulorl.config.data_config import DataConfig
from ulorl.config.engine_config import EngineConfig
from ulorl.config.fields import Natural, Positive, StrictConfig
from ulorl.config.key_messages import explain
from ulorl.config.model_config import ModelConfig
from ulorl.config.reward_config import RewardConfig
from ulorl.config.training_config import (
    PACKED_MASK_TOKENS,
    EvalConfig,
    LogConfig,
    ObjectiveConfig,
    OptimConfig,
    RolloutConfig,
    RunConfig,
)


class Config(StrictConfig):
    """One run. Defaults are the paper's section 4.1."""

    steps: Positive = Field(default=300, description="steps of Algorithm 1")
    seed: Natural = Field(default=0, description="of every draw and of the order of the problems")
    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    engine: EngineConfig = EngineConfig()
    rollout: RolloutConfig = RolloutConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optim: OptimConfig = OptimConfig()
    reward: RewardConfig = RewardConfig()
    data: DataConfig
    eval: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if lines := [*self._impossible_engine(), *self._impossible_learner(), *self._impossible_problems()]:
            raise ValueError("\n".join(lines))
        return self

    def _impossible_engine(self) -> Iterator[str]:
        if self.objective.importance == "tois" and self.rollout.segments > 1:
            yield (
                f"objective.importance=tois needs rollout.segments=1 (found {self.rollout.segments}): with more "
                "segments a sample's tokens come from several versions; use pois or sais"
            )
        if self.objective.tis_cap and self.objective.importance != "pois":
            yield (
                f"objective.tis_cap={self.objective.tis_cap} goes with objective.importance=pois: the old policy of "
                f"{self.objective.importance} is the engine's already, its ratio would be counted twice"
            )
        truncated = self.rollout.top_p < 1 or self.rollout.top_k > 0
        if self.engine.kind == "vllm" and truncated and self.rollout.temperature != 1:
            yield (
                f"engine.kind=vllm with rollout.temperature={self.rollout.temperature} needs rollout.top_p=1 and "
                "rollout.top_k=0: vLLM gives log-probs either before temperature or after top-p and top-k, and "
                "training needs those between"
            )

    def _impossible_learner(self) -> Iterator[str]:
        flash, autocast = self.model.attention == "flash_attention_2", self.optim.autocast == "bfloat16"
        if autocast and self.model.dtype == "bfloat16":
            yield (
                "optim.autocast=bfloat16 goes with model.dtype=float32: weights stay float32 and are rounded for each "
                "product; those of model.dtype=bfloat16 are bfloat16 already"
            )
        if flash and not autocast and self.model.dtype == "float32":
            yield "model.attention=flash_attention_2 needs bfloat16: optim.autocast=bfloat16, or model.dtype=bfloat16"
        if self.optim.layout == "packed" and not flash and self.optim.microbatch_tokens > PACKED_MASK_TOKENS:
            yield (
                f"optim.layout=packed with model.attention={self.model.attention} needs optim.microbatch_tokens <= "
                f"{PACKED_MASK_TOKENS} (found {self.optim.microbatch_tokens}): its mask takes tokens x tokens bytes; "
                "take flash_attention_2, or optim.layout=padded, which needs no mask"
            )
        if self.optim.minibatches > self.rollout.prompts * self.rollout.group:
            yield (
                f"optim.minibatches={self.optim.minibatches} is more than rollout.prompts x rollout.group = "
                f"{self.rollout.prompts * self.rollout.group} samples a step; a mini-batch holds at least one"
            )
        soft, buffer = self.objective.overlong == "soft", self.objective.overlong_buffer
        if buffer >= self.rollout.max_tokens or (soft and not buffer):
            yield (
                f"objective.overlong_buffer must be less than rollout.max_tokens={self.rollout.max_tokens}, and "
                f"objective.overlong=soft needs 0 < objective.overlong_buffer < rollout.max_tokens; found {buffer}"
            )

    def _impossible_problems(self) -> Iterator[str]:
        try:
            sources = {"data": self.data, **({"eval.data": self.eval_data()} if self.eval.data else {})}
        except ValueError as error:
            yield str(error)
            return
        for key, data in sources.items():
            if self.reward.kind in ("countdown", "reasoning_gym") and data.kind != self.reward.kind:
                yield (
                    f"reward.kind={self.reward.kind} judges problems of {key}.kind={self.reward.kind} only, found "
                    f"{key}.kind={data.kind}; for files and the hub take reward.kind=math, numeric, exact, choice, "
                    "generative or function"
                )

    @property
    def engine_dtype(self) -> Literal["float32", "bfloat16"]:
        """Of the rollout's copy of the weights."""
        return self.model.dtype if self.engine.dtype == "auto" else self.engine.dtype

    @property
    def learner_dtype(self) -> Literal["float32", "bfloat16"]:
        """What the learner's forward pass computes in."""
        return "bfloat16" if self.optim.autocast == "bfloat16" else self.model.dtype

    def eval_data(self) -> DataConfig:
        """The held-out problems: `data` with the keys of `eval.data` laid over it."""
        try:
            return DataConfig.model_validate({**self.data.model_dump(), **self.eval.data})
        except ValidationError as error:
            lines = [explain(dict(e), within=("eval", "data"), section=DataConfig) for e in error.errors()]
            raise ValueError("\n".join(lines)) from None
