"""The memory of one GPU of a rollout engine: its copy of the weights, and keys and values. All numbers are bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ulorl.planning.model_sizes import ModelSizes

Sharing = Literal["no", "turns", "together"]


@dataclass(frozen=True)
class EngineSetting:
    """What an engine is, as far as memory depends on it.

    kind: the embedded engine takes memory for its slots; vLLM takes `memory_fraction` of the GPU. number: bytes of one
    number. engines: how many there are, each on `tensor_parallel` GPUs. longest: tokens of the longest prompt with its
    output. sharing: whether its GPUs are the learner's too, at the same time or in turns. process: whether vLLM runs in
    a process of its own, which a learner of several processes needs.
    """

    kind: Literal["torch", "vllm"]
    number: int
    engines: int
    tensor_parallel: int
    memory_fraction: float
    slots: int
    longest: int
    sharing: Sharing
    process: bool = False

    @property
    def gpus(self) -> int:
        """The GPUs of all engines that the learner does not use."""
        return self.engines * self.tensor_parallel if self.sharing == "no" else 0


@dataclass(frozen=True)
class EngineMemory:
    """The memory of one GPU of an engine, in bytes, and the samples of full length that the engine holds at once."""

    weights: int
    cache: int
    sample: int

    @property
    def total(self) -> int:
        """Weights, keys and values."""
        return self.weights + self.cache

    @property
    def samples(self) -> int:
        """The samples of the longest length whose keys and values the cache holds at once."""
        return self.cache // self.sample


def engine_memory(sizes: ModelSizes, setting: EngineSetting, gpu: int) -> EngineMemory:
    """Return the memory of an engine on GPUs of `gpu` bytes. A GPU holds at least one key-value head of each layer."""
    parallel = setting.tensor_parallel
    heads = max(-(-sizes.kv_heads // parallel), 1)
    sample = setting.number * (sizes.cache_values // sizes.kv_heads) * heads * setting.longest
    weights = -(-setting.number * sizes.parameters // parallel)
    if setting.kind == "torch":
        return EngineMemory(weights, setting.slots * sample, sample)
    return EngineMemory(weights, max(0, int(setting.memory_fraction * gpu) - weights), sample)
