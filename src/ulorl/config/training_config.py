"""[run], [rollout], [objective], [optim], [eval] and [log]."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ulorl.config.fields import MAY_CHANGE, Finding, Natural, Positive, RefusedKeys, Share, StrictConfig

PACKED_MASK_TOKENS = 16384  # of a packed row without flash-attention: its mask alone takes 256 MiB, its square


class RunConfig(StrictConfig):
    dir: str = Field(default="runs/run", min_length=1, description="the run's folder")
    checkpoint_every: Natural = Field(
        default=10, description="steps between checkpoints; 0: at the end only", json_schema_extra=MAY_CHANGE
    )
    keep_last: Positive = Field(default=2, description="newest checkpoints kept", json_schema_extra=MAY_CHANGE)
    keep_every: Natural = Field(
        default=0,
        description="checkpoints at multiples of this are kept for good; 0: none",
        json_schema_extra=MAY_CHANGE,
    )
    async_checkpoint: bool = Field(
        default=False,
        description="write checkpoints beside the run, from a copy in memory (weights and moments again)",
        json_schema_extra=MAY_CHANGE,
    )


class RolloutConfig(StrictConfig):
    prompts: Positive = Field(default=128, description="new problems a step")
    group: int = Field(default=8, ge=2, description="samples a problem (G)")
    max_tokens: Positive = Field(default=131072, description="global maximum output length (L)")
    segments: Positive = Field(default=8, description="maximum segments a sample (k); 1 is the synchronous loop")
    temperature: float = Field(default=0.85, gt=0, description="also that of the learner's log-probs and entropies")
    top_p: Share = Field(default=1.0, description="nucleus; 1: off")
    top_k: Natural = Field(default=0, description="0: off")

    @property
    def segment_tokens(self) -> int:
        return self.max_tokens // self.segments

    @model_validator(mode="after")
    def _segments_divide(self) -> Self:
        if self.max_tokens % self.segments:
            raise RefusedKeys(
                Finding(
                    "segments",
                    f"{self.segments} does not divide rollout.max_tokens={self.max_tokens}; choose a divisor: a "
                    "segment is max_tokens / segments tokens",
                )
            )
        return self


class MptConfig(StrictConfig):
    """Do not train well-mastered positive tokens (section 3.2)."""

    mask: Literal["off", "all", "dynamic"] = Field(default="dynamic", description="dynamic: DMMPTs (eq. 10)")
    tau: Share = Field(default=0.99, description="a token is well-mastered when its probability is at least this")
    sigma: float = Field(default=0.2, ge=0, description="target entropy in nats: below it MPTs are masked")
    gate: Literal["sample", "batch"] = Field(
        default="sample",
        description="whose mean entropy is held against sigma: the sample's, or the update's at its start",
    )


class ObjectiveConfig(StrictConfig):
    importance: Literal["tois", "sais", "pois"] = Field(default="pois", description="the old policy (section 3.1)")
    clip_low: float = Field(default=0.2, gt=0, lt=1, description="ratios are clipped at 1 - clip_low")
    clip_high: float = Field(default=0.2, gt=0, description="and at 1 + clip_high")
    dynamic_sampling: bool = Field(default=True, description="leave out groups that are all right or all wrong")
    overlong: Literal["wrong", "filter", "soft"] = Field(
        default="wrong", description="truncated samples: reward 0; left out of the loss; or DAPO's soft punishment"
    )
    overlong_buffer: Natural = Field(default=0, description="tokens before max_tokens where soft punishment begins")
    tis_cap: float = Field(
        default=0,
        ge=0,
        description="truncated importance sampling: weigh tokens by min(pi_old/pi_engine, this); 0: off",
    )
    mpt: MptConfig = MptConfig()


class OptimConfig(StrictConfig):
    lr: float = Field(default=1e-6, gt=0, description="learning rate of AdamW", json_schema_extra=MAY_CHANGE)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=(0.9, 0.999), strict=False, description="of AdamW"
    )
    eps: float = Field(default=1e-8, gt=0, description="of AdamW")
    weight_decay: float = Field(default=0.0, ge=0, description="of AdamW")
    warmup_steps: Natural = Field(default=0, description="gradient updates of linear warm-up; then lr is constant")
    grad_clip: float = Field(default=1.0, gt=0, description="global gradient norm")
    minibatches: Positive = Field(default=1, description="gradient updates a step; the paper makes one")
    microbatch_tokens: Positive = Field(default=16384, description="tokens of one forward pass, padding included")
    layout: Literal["padded", "packed"] = Field(
        default="padded",
        description="of a micro-batch: a row a sample, or samples end to end without padding, for flash_attention_2",
    )
    recompute: bool = Field(default=False, description="recompute activations backward (gradient checkpointing)")
    autocast: Literal["off", "bfloat16"] = Field(
        default="off", description="matrix products of forward and backward in bfloat16, with float32 weights"
    )
    offload: bool = Field(default=False, description="AdamW's moments and its step on the CPU, for one GPU")
    max_skipped: Positive = Field(
        default=3,
        description="mini-batches in a row whose loss or gradient is not finite, then the run stops",
        json_schema_extra=MAY_CHANGE,
    )


class EvalConfig(StrictConfig):
    every: Natural = Field(
        default=0,
        description="steps between evaluations; 0: before and after training only",
        json_schema_extra=MAY_CHANGE,
    )
    problems: Positive = Field(default=500, description="held-out problems, at most")
    samples: Positive = Field(default=1, description="runs a problem: k of avg@k")
    temperature: float = Field(default=0.85, ge=0, description="0 is greedy")
    top_p: Share = Field(default=1.0, description="nucleus; 1: off")
    top_k: Natural = Field(default=0, description="0: off")
    max_tokens: Natural = Field(default=0, description="0: rollout.max_tokens")
    data: dict[str, Any] = Field(
        default_factory=dict, description="keys of [data] that differ for the held-out problems; empty: no evaluation"
    )


class LogConfig(StrictConfig):
    progress: bool = Field(default=True, description="progress bars, when the output is a terminal")
    wandb: bool = Field(default=False, description="log to Weights & Biases too (extra wandb)")
    trackio: bool = Field(default=False, description="log to trackio too (extra trackio)")
    project: str = Field(default="ulorl", description="the project's name there")
