"""The engines' end of vLLM's weight transfer, as the trainer sees it: the engines that receive one broadcast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

Call = Callable[[str, dict[str, Any]], object]  # calls a method, with keyword arguments, on all workers of an engine


class TransferClient:
    """vLLM's `VLLMWeightSyncClient` over several engines, which it calls at the same time: all wait for the broadcast.

    engines: how each is called. workers: the GPUs of each engine. Rank 0 of the NCCL group is the trainer's; vLLM tells
    every engine that its workers begin at rank 1, so each engine gets an offset of its own here.
    """

    def __init__(self, engines: Sequence[Call], workers: int) -> None:
        self._engines, self._workers = engines, workers

    @property
    def world_size(self) -> int:
        """The ranks of the NCCL group: the trainer's sender, and all workers of all engines."""
        return 1 + len(self._engines) * self._workers

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Let the engines join the trainer's group. A group that they joined before is destroyed first: vLLM keeps it
        otherwise (vllm#40646)."""
        self.shutdown_weight_transfer_engine()
        infos = [dict(init_info) for _ in self._engines]
        if "rank_offset" in init_info:  # of NCCL; CUDA IPC has no ranks
            for index, info in enumerate(infos):
                info["rank_offset"] += index * self._workers
        self._call("init_weight_transfer_engine", [{"init_info": info} for info in infos])

    def shutdown_weight_transfer_engine(self) -> None:
        """Let the engines leave the group."""
        self._call("shutdown_weight_transfer_engine")

    def start_weight_update(self) -> None:
        """Prepare the engines for new weights."""
        self._call("start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        """Let the engines receive weights; returns when all have them."""
        self._call("update_weights", [{"update_info": update_info}] * len(self._engines))

    def finish_weight_update(self, weight_version: str | None = None) -> None:  # noqa: ARG002
        """Let the engines use the new weights. `Engine.load_weights` sets the version."""
        self._call("finish_weight_update")

    def _call(self, name: str, arguments: Sequence[dict[str, Any]] = ()) -> None:
        with ThreadPoolExecutor(len(self._engines)) as threads:
            each = arguments or [{}] * len(self._engines)
            calls = [threads.submit(engine, name, args) for engine, args in zip(self._engines, each, strict=True)]
        for call in calls:
            call.result()
