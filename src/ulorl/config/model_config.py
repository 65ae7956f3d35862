"""[model]: where the weights come from, how the learner holds them, longer contexts and LoRA."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ulorl.config.fields import Finding, Natural, RefusedKeys, StrictConfig
from ulorl.error_codes import ErrorCode


class RopeConfig(StrictConfig):
    """Positions beyond those the model was trained on, in learner and engines alike."""

    type: Literal["none", "yarn"] = Field(default="none", description="none: as the model's own config.json says")
    factor: float = Field(default=0, ge=0, description="yarn: by which the context grows, more than 1 (paper: 1.5)")
    original_max_position_embeddings: Natural = Field(
        default=0, description="yarn: positions before it grows; the context is factor times this (paper: 95232)"
    )

    @property
    def length(self) -> int:
        """Positions, prompt and output together."""
        return int(self.factor * self.original_max_position_embeddings)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.type == "none" and (self.factor or self.original_max_position_embeddings):
            raise RefusedKeys(Finding("type", "must be yarn for factor and original_max_position_embeddings"))
        if self.type == "yarn" and self.factor <= 1:
            raise RefusedKeys(Finding("factor", f"{self.factor:g} must be more than 1: the context grows by it"))
        if self.type == "yarn" and not self.original_max_position_embeddings:
            text = "missing; the number of positions before they grow"
            raise RefusedKeys(Finding("original_max_position_embeddings", text, ErrorCode.CONFIG_MISSING_KEY))
        return self


class LoraConfig(StrictConfig):
    """Train low-rank adapters instead of all weights (extra lora)."""

    rank: Natural = Field(default=0, description="of the adapters; 0: off, all weights train")
    alpha: float = Field(default=32, gt=0, description="adapters are scaled by alpha / rank")
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default="all-linear", description='every linear layer but the head; or names, as in ["q_proj", "v_proj"]'
    )

    @model_validator(mode="after")
    def _targets_named(self) -> Self:
        if not all(self.targets) or not self.targets:
            text = 'names no layer; give all-linear, or a list as in ["q_proj", "v_proj"]'
            raise RefusedKeys(Finding("targets", text, ErrorCode.CONFIG_BAD_VALUE))
        return self


class ModelConfig(StrictConfig):
    path: str = Field(
        default="ulorl:tiny",
        min_length=1,
        description="a transformers folder, a hub name, or ulorl:tiny (the shipped tiny reasoner)",
    )
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="the learner's weights")
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")
    threads: Natural = Field(default=0, le=4096, description="CPU threads; 0: torch's choice")
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        default="sdpa", description="the learner's kernel; flash_attention_2 needs a GPU, flash-attn and bfloat16"
    )
    cpu_kernels: bool = Field(
        default=True,
        description="use oneDNN products and the fused decode step on a CPU; false: torch's generic path, with the "
        "same results, slower",
    )
    trust_remote_code: bool = Field(default=False, description="run Python code found in the model folder")
    rope: RopeConfig = RopeConfig()
    lora: LoraConfig = LoraConfig()
