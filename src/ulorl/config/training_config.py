"""[run], [rollout], [objective], [optim], [eval] and [log]."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ulorl.config.entropy_config import EntropyConfig, NoEntropyConfig
from ulorl.config.fields import MAY_CHANGE, Finding, Natural, Positive, RefusedKeys, Share, StrictConfig
from ulorl.config.schedule_config import ScheduleConfig, SegmentScheduleConfig

PACKED_MASK_TOKENS = 16384  # of a packed row without flash-attention: its mask alone takes 256 MiB, its square


class RunConfig(StrictConfig):
    """[run]: the folder of a run, and its checkpoints."""

    dir: str = Field(default="runs/run", min_length=1, description="the folder of the run")
    checkpoint_every: Natural = Field(
        default=10, description="steps between checkpoints; 0: only at the end", json_schema_extra=MAY_CHANGE
    )
    keep_last: Positive = Field(
        default=2, description="how many of the newest checkpoints are kept", json_schema_extra=MAY_CHANGE
    )
    keep_every: Natural = Field(
        default=0,
        description="checkpoints whose step is a multiple of this are never removed; 0: none",
        json_schema_extra=MAY_CHANGE,
    )
    async_checkpoint: bool = Field(
        default=False,
        description="write checkpoints while training continues, from a copy in memory (of weights and moments)",
        json_schema_extra=MAY_CHANGE,
    )


class RolloutConfig(StrictConfig):
    """[rollout]: how many samples are generated, how long they are, and how they are drawn."""

    prompts: Positive = Field(default=128, description="new problems per step")
    group: int = Field(default=8, ge=2, description="samples per problem (G)")
    max_tokens: Positive = Field(default=131072, description="the longest output in tokens (L)")
    segments: Positive = Field(
        default=8,
        description="the most segments of a sample (k), with schedule.kind=segment; 1: every sample is finished within "
        "its step",
        json_schema_extra=MAY_CHANGE,
    )
    temperature: float = Field(
        default=0.85, gt=0, description="the sampling temperature, also of the learner's log-probs and entropies"
    )
    top_p: Share = Field(default=1.0, description="nucleus sampling; 1: off")
    top_k: Natural = Field(default=0, description="sample from the k likeliest tokens; 0: from all")
    overlap: bool = Field(
        default=False,
        description="decode each step while the learner trains on the groups of the step before, with weights that are "
        "one step older; takes memory on the host for two copies of the weights",
    )
    schedule: ScheduleConfig = Field(default=SegmentScheduleConfig(), json_schema_extra=MAY_CHANGE)

    @property
    def segment_tokens(self) -> int:
        """The length of a segment in tokens."""
        return self.max_tokens // self.segments

    @model_validator(mode="after")
    def _versions_possible(self) -> Self:
        if self.schedule.max_versions == 1:
            raise RefusedKeys(
                Finding(
                    "schedule.max_versions",
                    "1 is not possible with carried samples; take rollout.segments=1 with schedule.kind=segment, which "
                    "finishes every sample within its step",
                )
            )
        return self

    @model_validator(mode="after")
    def _segments_divide(self) -> Self:
        if self.schedule.kind == "segment" and self.max_tokens % self.segments:
            raise RefusedKeys(
                Finding(
                    "segments",
                    f"{self.segments} does not divide rollout.max_tokens={self.max_tokens}; choose a divisor: a "
                    "segment is max_tokens / segments tokens",
                )
            )
        return self


class MptConfig(StrictConfig):
    """[objective.mpt]: well-mastered positive tokens (MPTs), which are not trained (section 3.2)."""

    mask: Literal["off", "all", "dynamic"] = Field(
        default="dynamic",
        description="off: MPTs are trained; all: they are masked; dynamic: they are masked while the entropy is below "
        "sigma (DMMPTs, eq. 10)",
    )
    tau: Share = Field(default=0.99, description="a token is well-mastered if its probability is at least this")
    sigma: float = Field(default=0.2, ge=0, description="the target entropy in nats, for mask=dynamic")
    gate: Literal["sample", "batch"] = Field(
        default="sample",
        description="whose mean entropy is compared with sigma: that of the sample, or that of the whole update at its "
        "start",
    )


class EngineMaskConfig(StrictConfig):
    """[objective.engine_mask]: tokens whose pi_old / pi_engine is out of bounds are left out of the loss."""

    level: Literal["off", "token", "sequence", "sequence_mean"] = Field(
        default="off",
        description="whose pi_old / pi_engine is compared: that of the token, the product over its sample (sequence), "
        "or the geometric mean over its sample (sequence_mean)",
    )
    low: float = Field(default=0.5, ge=0, description="the smallest ratio that is trained; 0: no lower bound")
    high: float = Field(default=5.0, gt=0, description="the largest ratio that is trained")

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.low >= self.high:
            raise RefusedKeys(Finding("low", f"must be below high={self.high}, found {self.low}"))
        return self


class ObjectiveConfig(StrictConfig):
    """[objective]: the loss of Algorithm 1."""

    loss: Literal["ppo", "cispo", "gspo"] = Field(
        default="ppo",
        description="the policy loss: ppo: clipped, mean over tokens (eqs. 7 and 10); cispo: clipped ratios weight the "
        "gradient (MiniMax-M1); gspo: one ratio for each sample, mean over samples",
    )
    importance: Literal["tois", "sais", "pois", "decoupled"] = Field(
        default="pois",
        description="the old policy of the importance ratio (section 3.1): tois and sais: the version that generated "
        "the token (tois: of the whole sample); pois: the newest version; decoupled: the version that generated the "
        "token, with the learner's own log-probs, which one more forward pass in each step records",
    )
    clip_low: float = Field(
        default=0.2, gt=0, le=1, description="importance ratios are clipped below 1 - clip_low; 1: no lower bound"
    )
    clip_high: float = Field(default=0.2, gt=0, description="importance ratios are clipped above 1 + clip_high")
    dynamic_sampling: bool = Field(default=True, description="skip groups whose samples are all right or all wrong")
    overlong: Literal["wrong", "filter", "soft"] = Field(
        default="wrong",
        description="truncated samples get the reward 0, are left out of the loss (filter), or get the soft punishment "
        "of DAPO",
    )
    overlong_buffer: Natural = Field(
        default=0, description="the soft punishment begins so many tokens before rollout.max_tokens"
    )
    tis_cap: float = Field(
        default=0,
        ge=0,
        description="truncated importance sampling: tokens are weighted by min(pi_old / pi_engine, tis_cap); 0: off",
    )
    engine_mask: EngineMaskConfig = EngineMaskConfig()
    min_prefix: bool = Field(
        default=False,
        description="MinPRO: a token's ratio is multiplied by the smallest ratio of the tokens before it in its sample",
    )
    mpt: MptConfig = MptConfig()
    entropy: EntropyConfig = NoEntropyConfig()


class OptimConfig(StrictConfig):
    """[optim]: AdamW, and how a batch is cut into mini-batches and micro-batches."""

    lr: float = Field(
        default=1e-6, gt=0, description="the learning rate of AdamW after the warm-up", json_schema_extra=MAY_CHANGE
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=(0.9, 0.999), strict=False, description="the decay rates of AdamW's moments"
    )
    eps: float = Field(default=1e-8, gt=0, description="the epsilon of AdamW")
    weight_decay: float = Field(default=0.0, ge=0, description="the weight decay of AdamW")
    warmup_steps: Natural = Field(
        default=0, description="the learning rate rises linearly over so many gradient updates, then is constant"
    )
    grad_clip: float = Field(default=1.0, gt=0, description="the largest global norm of the gradient")
    minibatches: Positive = Field(default=1, description="gradient updates per step; the paper makes one")
    microbatch_tokens: Positive = Field(
        default=16384, description="the most tokens of one forward pass, padding included"
    )
    layout: Literal["padded", "packed"] = Field(
        default="padded",
        description="padded: each sample is a row of a micro-batch; packed: samples follow one another without "
        "padding, for flash_attention_2",
    )
    recompute: bool = Field(
        default=False, description="recompute activations in the backward pass (gradient checkpointing)"
    )
    autocast: Literal["off", "bfloat16"] = Field(
        default="off",
        description="bfloat16: matrix products of forward and backward pass in bfloat16, with float32 weights",
    )
    sequence_parallel: Positive = Field(
        default=1,
        description="how many processes of the learner share each sequence (Ulysses); microbatch_tokens counts the "
        "tokens of one process",
        json_schema_extra=MAY_CHANGE,
    )
    offload: bool = Field(default=False, description="keep AdamW's moments, and make its step, on the CPU")
    max_skipped: Positive = Field(
        default=3,
        description="the run stops after so many mini-batches in a row whose loss or gradient is not finite",
        json_schema_extra=MAY_CHANGE,
    )


class EvalConfig(StrictConfig):
    """[eval]: avg@k on held-out problems."""

    every: Natural = Field(
        default=0,
        description="steps between evaluations; 0: only before and after training",
        json_schema_extra=MAY_CHANGE,
    )
    problems: Positive = Field(default=500, description="the most held-out problems that are used")
    samples: Positive = Field(default=1, description="samples per problem: the k of avg@k")
    temperature: float = Field(default=0.85, ge=0, description="the sampling temperature; 0 is greedy")
    top_p: Share = Field(default=1.0, description="nucleus sampling; 1: off")
    top_k: Natural = Field(default=0, description="sample from the k likeliest tokens; 0: from all")
    max_tokens: Natural = Field(default=0, description="the longest output in tokens; 0: rollout.max_tokens")
    data: dict[str, Any] = Field(
        default_factory=dict,
        description="the keys of [data] that differ for the held-out problems; empty: no evaluation",
    )


class LogConfig(StrictConfig):
    """[log]: progress bars, the report and trackers."""

    progress: bool = Field(default=True, description="draw progress bars if the output is a terminal")
    timeline: bool = Field(
        default=True, description="record in timeline.jsonl when each sample was decoded, for the report"
    )
    report: bool = Field(
        default=True,
        description="write report.html at the end, which takes seconds; `ulorl report` writes it later too",
    )
    token_samples: Natural = Field(
        default=8,
        description="trained samples of each step whose tokens are stored with log-prob, entropy and mask; of more "
        "than 4,000 tokens the first and the last 2,000",
    )
    wandb: bool = Field(default=False, description="also log to Weights & Biases (extra wandb)")
    trackio: bool = Field(default=False, description="also log to trackio (extra trackio)")
    mlflow: bool = Field(default=False, description="also log to MLflow (extra mlflow)")
    project: str = Field(
        default="ulorl", description="the name of the project, in MLflow the experiment, at the trackers"
    )
    samples: Natural = Field(
        default=8, description="samples of each step that TensorBoard and the trackers get as a table; 0: none"
    )
