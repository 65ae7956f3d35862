"""[engine]: which engine decodes, and its settings."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from ulorl.config.fields import MAY_CHANGE, Finding, Natural, Positive, RefusedKeys, Share, StrictConfig
from ulorl.config.unions import ByKind


class VllmConfig(StrictConfig):
    """[engine.vllm]: the settings of vLLM."""

    process: bool = Field(default=False, description="run vLLM in another process; false: as a library in this one")
    tensor_parallel: Positive = Field(default=1, description="how many GPUs share one copy of the model")
    devices: tuple[Natural, ...] = Field(
        default=(), strict=False, description="the numbers of the GPUs; empty: the first tensor_parallel ones"
    )
    memory_fraction: Share = Field(
        default=0.9, description="the largest share of a GPU's memory (without a GPU: of the machine's) that it takes"
    )
    max_length: Natural = Field(
        default=0, description="the longest prompt plus output in tokens; 0: the longest that this run can need"
    )
    eager: bool = Field(
        default=False, description="without torch.compile and CUDA graphs: starts sooner, decodes slower"
    )
    sleep: bool = Field(default=False, description="free the GPU's memory while the learner works")
    transfer: Literal["auto", "direct", "file", "ipc", "nccl"] = Field(
        default="auto",
        description="how new weights are sent: by reference (one process), through a file in memory, by CUDA IPC "
        "(same GPU) or by NCCL (other GPUs)",
    )
    args: dict[str, Any] = Field(
        default_factory=dict, description="any other arguments of vLLM's EngineArgs, by their names"
    )

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        parallel = self.tensor_parallel > 1
        if self.transfer == "direct" and (self.process or parallel):
            raise RefusedKeys(
                Finding(
                    "transfer",
                    "direct needs process=false and tensor_parallel=1: weights cannot be passed to another process "
                    "by reference; use auto",
                )
            )
        if self.transfer == "ipc" and (not self.process or parallel):
            raise RefusedKeys(
                Finding(
                    "transfer",
                    "ipc needs process=true and tensor_parallel=1: the learner shares the memory of its GPU with "
                    "another process; use auto",
                )
            )
        if self.transfer == "nccl" and not self.process and not parallel:
            raise RefusedKeys(Finding("transfer", "nccl needs process=true; use auto"))
        if self.devices and len(self.devices) != self.tensor_parallel:
            raise RefusedKeys(
                Finding("devices", f"lists {len(self.devices)} GPUs, but tensor_parallel={self.tensor_parallel}")
            )
        return self


class BaseEngineConfig(StrictConfig):
    """The keys of every engine."""

    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="the dtype of the engine's weights; auto: model.dtype. A CPU without bfloat16 products computes "
        "bfloat16 in float32",
    )
    slots: Positive = Field(
        default=128, description="how many samples are decoded at the same time; the others wait in the engine"
    )
    prefill_tokens: Positive = Field(default=8192, description="the most tokens of one prefill pass")
    tolerance: float = Field(
        default=0,
        ge=0,
        description="the run stops when the log-probs of engine and learner differ by more than this many nats on a "
        "probe; 0: a limit that depends on the dtype",
        json_schema_extra=MAY_CHANGE,
    )
    max_faults: Positive = Field(
        default=3,
        description="the run stops after so many failures of the engine in a row, without a segment between them",
        json_schema_extra=MAY_CHANGE,
    )
    deadline: float = Field(
        default=1800,
        ge=0,
        description="an engine that neither decodes nor loads anything for so many seconds hangs; 0: no limit",
        json_schema_extra=MAY_CHANGE,
    )


class TorchEngineConfig(BaseEngineConfig):
    """The embedded engine."""

    kind: Literal["torch"] = "torch"

    @property
    def gpus(self) -> int:
        """The GPUs of one engine, where it has any."""
        return 1


class VllmEngineConfig(BaseEngineConfig):
    """vLLM."""

    kind: Literal["vllm"] = "vllm"
    vllm: VllmConfig = VllmConfig()

    @property
    def gpus(self) -> int:
        """The GPUs of one engine, where it has any."""
        return self.vllm.tensor_parallel


EngineConfig: TypeAlias = Annotated[
    TorchEngineConfig | VllmEngineConfig, ByKind("torch: the embedded engine; vllm: vLLM (extra vllm)")
]
