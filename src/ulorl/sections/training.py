"""The sections of a run but for its reward: every key, its default and its check. No torch, no engine."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ulorl.sections.base import Natural, Positive, Section, Share

PACKED_MASK_TOKENS = 16384  # of a packed row without flash-attention: its mask alone takes 256 MiB, its square


class Run(Section):
    dir: str = Field(default="runs/run", min_length=1, description="the run's folder")
    checkpoint_every: Natural = Field(default=10, description="steps between checkpoints; 0: at the end only")
    keep_last: Positive = Field(default=2, description="newest checkpoints kept")
    keep_every: Natural = Field(default=0, description="checkpoints at multiples of this are kept for good; 0: none")
    async_checkpoint: bool = Field(
        default=False, description="write checkpoints beside the run, from a copy in memory (weights and moments again)"
    )


class Rope(Section):
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
            raise ValueError(
                "model.rope.type=yarn is missing, which factor and original_max_position_embeddings go with"
            )
        if self.type == "yarn" and self.factor <= 1:
            raise ValueError(f"model.rope.factor={self.factor:g} must be more than 1: the context grows by it")
        if self.type == "yarn" and not self.original_max_position_embeddings:
            raise ValueError("model.rope.original_max_position_embeddings is missing: positions before they grow")
        return self


class Lora(Section):
    """Train low-rank adapters instead of all weights (extra lora)."""

    rank: Natural = Field(default=0, description="of the adapters; 0: off, all weights train")
    alpha: float = Field(default=32, gt=0, description="adapters are scaled by alpha / rank")
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default="all-linear", description='every linear layer but the head; or names, as in ["q_proj", "v_proj"]'
    )

    @model_validator(mode="after")
    def _targets_named(self) -> Self:
        if not all(self.targets) or not self.targets:
            raise ValueError('model.lora.targets names no layer; give all-linear, or a list as in ["q_proj", "v_proj"]')
        return self


class Model(Section):
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
    trust_remote_code: bool = Field(default=False, description="run Python code found in the model folder")
    rope: Rope = Rope()
    lora: Lora = Lora()


class Vllm(Section):
    """Of engine.kind=vllm."""

    process: bool = Field(default=False, description="a process of its own, instead of a library in ours")
    tensor_parallel: Positive = Field(default=1, description="GPUs that share one copy of the model")
    devices: tuple[Natural, ...] = Field(
        default=(), strict=False, description="GPUs by number; empty: the first tensor_parallel"
    )
    memory_fraction: Share = Field(
        default=0.9, description="of a GPU's memory (without GPU: of the machine's), at most"
    )
    max_length: Natural = Field(default=0, description="longest prompt + output; 0: the longest this run can need")
    eager: bool = Field(default=False, description="no torch.compile, no CUDA graphs: starts at once, decodes slower")
    sleep: bool = Field(default=False, description="leave the GPU's memory to the learner while it works")
    transfer: Literal["auto", "direct", "file", "ipc", "nccl"] = Field(
        default="auto",
        description="new weights: by reference (one process), by a file in memory, CUDA IPC (same GPU), NCCL (others)",
    )
    args: dict[str, Any] = Field(default_factory=dict, description="any other argument of vLLM's EngineArgs, by name")

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.transfer == "direct" and (self.process or self.tensor_parallel > 1):
            raise ValueError(
                "engine.vllm.transfer=direct needs engine.vllm.process=false and tensor_parallel=1: weights cannot be "
                "handed to another process by reference; use auto"
            )
        if self.transfer == "ipc" and (not self.process or self.tensor_parallel > 1):
            raise ValueError(
                "engine.vllm.transfer=ipc needs engine.vllm.process=true and tensor_parallel=1: the learner shares the "
                "memory of its own GPU with another process; use auto"
            )
        if self.transfer == "nccl" and not self.process and self.tensor_parallel == 1:
            raise ValueError("engine.vllm.transfer=nccl needs engine.vllm.process=true; use auto")
        if self.devices and len(self.devices) != self.tensor_parallel:
            raise ValueError(
                f"engine.vllm.devices names {len(self.devices)} GPUs, "
                f"engine.vllm.tensor_parallel={self.tensor_parallel} needs as many"
            )
        return self


class Engine(Section):
    kind: Literal["torch", "vllm"] = Field(default="torch", description="the embedded engine, or vLLM (extra vllm)")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="auto: the model's; bfloat16 is computed in float32 on a CPU that multiplies no bfloat16",
    )
    slots: Positive = Field(default=128, description="samples decoded at once; the rest wait in the engine")
    prefill_tokens: Positive = Field(default=8192, description="tokens of one prefill pass")
    tolerance: float = Field(
        default=0,
        ge=0,
        description="nats that engine and learner may differ by on a probe, else the run stops; 0: by dtype",
    )
    max_faults: Positive = Field(
        default=3, description="faults of the engine in a row, without a segment between them, then the run stops"
    )
    deadline: float = Field(
        default=1800, ge=0, description="seconds in which it must decode or load something, else it hangs; 0: off"
    )
    vllm: Vllm = Vllm()


class Rollout(Section):
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
            raise ValueError(
                f"rollout.segments={self.segments} does not divide rollout.max_tokens={self.max_tokens}; "
                "choose a divisor, a segment is max_tokens / segments tokens"
            )
        return self


class Mpt(Section):
    """Do not train well-mastered positive tokens (section 3.2)."""

    mask: Literal["off", "all", "dynamic"] = Field(default="dynamic", description="dynamic: DMMPTs (eq. 10)")
    tau: Share = Field(default=0.99, description="a token is well-mastered when its probability is at least this")
    sigma: float = Field(default=0.2, ge=0, description="target entropy in nats: below it MPTs are masked")
    gate: Literal["sample", "batch"] = Field(
        default="sample",
        description="whose mean entropy is held against sigma: the sample's, or the update's at its start",
    )


class Objective(Section):
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
    mpt: Mpt = Mpt()


class Optim(Section):
    lr: float = Field(default=1e-6, gt=0, description="learning rate of AdamW")
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
        default=3, description="mini-batches in a row whose loss or gradient is not finite, then the run stops"
    )


class Data(Section):
    kind: Literal["files", "hub", "reasoning_gym", "countdown"] = Field(
        default="files", description="JSONL or Parquet files; a hub dataset; or problems made by a generator"
    )
    path: str = Field(default="", description="files: a file, or a glob pattern; hub: the dataset's name")
    split: str = Field(default="train", description="hub: which split")
    subset: str = Field(default="", description="hub: which configuration of the dataset")
    question: str = Field(default="problem", description="the field that holds the question")
    answer: str = Field(default="answer", description="the field that holds the reference answer")
    answer_after: str = Field(default="", description="the reference is what follows the last of these, e.g. ####")
    bad: Literal["refuse", "skip"] = Field(
        default="refuse",
        description="files and hub: what to do about bad records, prompts that are too long among them",
    )
    keep: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description="further fields that a reward finds in problem.meta: yours, or options, for reward.kind=choice",
    )
    task: str = Field(default="", description="reasoning_gym: the task's name")
    settings: dict[str, Any] = Field(
        default_factory=dict, description="generators: their settings by name; {} drops a recipe's"
    )
    size: Natural = Field(default=0, description="problems to take or make; 0: all there are (files and hub only)")
    seed: int = Field(default=0, description="of generators")
    template: str = Field(default="{question}", description="the user's message; {question} is the problem")
    system: str = Field(default="", description="a system message, where the chat template takes one")
    chat: Literal["auto", "off"] = Field(default="auto", description="auto: apply the tokenizer's chat template")
    max_prompt_tokens: Positive = Field(default=2048, description="a problem with a longer prompt is bad")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind in ("files", "hub") and not self.path:
            raise ValueError(f"data.path is missing: data.kind={self.kind} needs one")
        if self.kind == "reasoning_gym" and not self.task:
            raise ValueError("data.task is missing: data.kind=reasoning_gym needs the name of a task")
        if self.kind in ("reasoning_gym", "countdown") and not self.size:
            raise ValueError(f"data.size is missing: data.kind={self.kind} needs the number of problems to make")
        if "{question}" not in self.template:
            raise ValueError("data.template must contain {question}")
        return self


class Eval(Section):
    every: Natural = Field(default=0, description="steps between evaluations; 0: before and after training only")
    problems: Positive = Field(default=500, description="held-out problems, at most")
    samples: Positive = Field(default=1, description="runs a problem: k of avg@k")
    temperature: float = Field(default=0.85, ge=0, description="0 is greedy")
    top_p: Share = Field(default=1.0, description="nucleus; 1: off")
    top_k: Natural = Field(default=0, description="0: off")
    max_tokens: Natural = Field(default=0, description="0: rollout.max_tokens")
    data: dict[str, Any] = Field(
        default_factory=dict, description="keys of [data] that differ for the held-out problems; empty: no evaluation"
    )


class Log(Section):
    progress: bool = Field(default=True, description="progress bars, when the output is a terminal")
    wandb: bool = Field(default=False, description="log to Weights & Biases too (extra wandb)")
    trackio: bool = Field(default=False, description="log to trackio too (extra trackio)")
    project: str = Field(default="ulorl", description="the project's name there")
