"""[backend]: which processes a run consists of, and who starts them."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from ulorl.config.fields import Natural, Positive, StrictConfig
from ulorl.config.unions import ByKind


class LocalBackendConfig(StrictConfig):
    """One process with a learner on one device and one engine; under torchrun, the same as `torchrun`."""

    kind: Literal["local"] = "local"

    @property
    def learner_ranks(self) -> int | None:
        """The processes that share the learner; None: as many as torchrun started, 1 without it."""
        return None


class TorchrunBackendConfig(StrictConfig):
    """The processes that torchrun started share the learner; the first one also runs the engine and the loop."""

    kind: Literal["torchrun"] = "torchrun"
    ranks: Natural = Field(default=0, description="the processes that share the learner; 0: as many as torchrun starts")

    @property
    def learner_ranks(self) -> int | None:
        """The processes that share the learner; None: as many as torchrun started."""
        return self.ranks or None


class RayBackendConfig(StrictConfig):
    """Ray places and supervises the processes of learner and engines."""

    kind: Literal["ray"] = "ray"
    address: str = Field(
        default="", description='the Ray cluster to join, such as "auto" or HOST:6379; empty: start one on this machine'
    )
    ranks: Positive = Field(default=1, description="the processes that share the learner, one GPU each")
    engines: Positive = Field(
        default=1, description="the number of engines; each takes engine.vllm.tensor_parallel GPUs"
    )
    colocate: bool = Field(
        default=False,
        description="engines and learner share GPUs and take turns: ranks = engines x engine.vllm.tensor_parallel; "
        "vLLM then needs engine.vllm.sleep=true",
    )
    deadline: float = Field(
        default=1800,
        ge=0,
        description="a process of the learner that does not answer for so many seconds hangs, while it works or waits "
        "for another one too; 0: no limit",
    )

    @property
    def learner_ranks(self) -> int:
        """The processes that share the learner."""
        return self.ranks


BackendConfig: TypeAlias = Annotated[
    LocalBackendConfig | TorchrunBackendConfig | RayBackendConfig,
    ByKind(
        "local: one process, or those that torchrun started; torchrun: refuse to run without it; ray: Ray places "
        "learner processes and engines on a cluster (extra ray)"
    ),
]
