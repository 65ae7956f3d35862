"""[model]: the model that is trained, longer contexts, and LoRA."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ulorl.config.fields import Finding, Natural, RefusedKeys, StrictConfig
from ulorl.error_codes import ErrorCode


class RopeConfig(StrictConfig):
    """[model.rope]: contexts that are longer than those the model was trained on, in the learner and the engines."""

    type: Literal["none", "yarn"] = Field(
        default="none", description="none: as config.json of the model says; yarn: YaRN"
    )
    factor: float = Field(
        default=0, ge=0, description="yarn: the context grows by this factor, which is more than 1 (paper: 1.5)"
    )
    original_max_position_embeddings: Natural = Field(
        default=0, description="yarn: the context in tokens before it grows (paper: 95232)"
    )

    @property
    def length(self) -> int:
        """The longest context in tokens, prompt and output together."""
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
    """[model.lora]: low-rank adapters are trained instead of all weights (extra lora)."""

    rank: Natural = Field(default=0, description="the rank of the adapters; 0: no adapters, all weights are trained")
    alpha: float = Field(default=32, gt=0, description="the adapters are scaled by alpha / rank")
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default="all-linear",
        description='all-linear: every linear layer except the head; or names, as in ["q_proj", "v_proj"]',
    )

    @model_validator(mode="after")
    def _targets_named(self) -> Self:
        if not all(self.targets) or not self.targets:
            text = 'names no layer; give all-linear, or a list as in ["q_proj", "v_proj"]'
            raise RefusedKeys(Finding("targets", text, ErrorCode.CONFIG_BAD_VALUE))
        return self


class ModelConfig(StrictConfig):
    """[model]: the model that is trained."""

    path: str = Field(
        default="ulorl:tiny",
        min_length=1,
        description="a transformers folder, a hub name, or a model of the package: ulorl:tiny or ulorl:tiny-maze",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="the dtype of the learner's weights; bfloat16: only where model.lora is trained"
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="where the learner computes: auto, cpu, cuda or cuda:N",
    )
    threads: Natural = Field(default=0, le=4096, description="the number of CPU threads; 0: torch chooses")
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        default="sdpa",
        description="the learner's attention kernel; flash_attention_2 needs a GPU, flash-attn and bfloat16",
    )
    cpu_kernels: bool = Field(
        default=True,
        description="use oneDNN products and the fused decode step on a CPU; false: torch's generic path, with the "
        "same results, slower",
    )
    trust_remote_code: bool = Field(default=False, description="run the Python code in the model folder")
    rope: RopeConfig = RopeConfig()
    lora: LoraConfig = LoraConfig()
