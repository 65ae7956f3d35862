"""[engine]: which engine decodes, and its settings."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ulorl.config.fields import Natural, Positive, Share, StrictConfig


class VllmConfig(StrictConfig):
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


class EngineConfig(StrictConfig):
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
    vllm: VllmConfig = VllmConfig()
