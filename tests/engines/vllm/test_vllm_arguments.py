"""The arguments that vLLM is started with, as vLLM's own configuration reads them. No engine is started."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ulorl.config.engine_config import VllmConfig, VllmEngineConfig
from ulorl.engines.engine_spec import EngineSpec
from ulorl.models.model_source import TINY, ModelSource
from ulorl.types import Sampling

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-engines` runs these")

from ray._raylet import PlacementGroupID
from ray.util.placement_group import PlacementGroup
from vllm.config import ParallelConfig

from ulorl.engines.vllm.vllm_arguments import engine_arguments


def arguments(**settings: Any) -> dict[str, Any]:
    spec = EngineSpec(
        VllmEngineConfig(vllm=VllmConfig(**settings)),
        torch.device("cpu"),
        Sampling(),
        longest=64,
        weights_dtype="float32",
    )
    return engine_arguments(spec, ModelSource(TINY), 64, "raw_logprobs", "file")


def chosen(backend: object, workers: int) -> object:
    """Return what vLLM chooses in an actor of a Ray placement group whose bundle has all GPUs of the engine."""
    group = PlacementGroup(PlacementGroupID.nil(), bundle_cache=[{"GPU": float(workers)}])
    config = ParallelConfig(
        tensor_parallel_size=workers, placement_group=group, distributed_executor_backend=backend
    )  # as EngineArgs.create_engine_config passes them on
    return config.distributed_executor_backend


def test_the_workers_of_an_engine_in_a_ray_actor_are_its_own_processes() -> None:
    """vLLM's Ray executor refuses a bundle of more than one GPU."""
    assert chosen(None, 2) == "ray"  # vLLM's own choice
    parallel = arguments(tensor_parallel=2)
    assert parallel["tensor_parallel_size"] == 2
    assert chosen(parallel["distributed_executor_backend"], 2) == "mp"
    assert chosen(arguments()["distributed_executor_backend"], 1) == "uni"


def test_the_users_arguments_go_before_ours() -> None:
    found = arguments(tensor_parallel=2, args={"distributed_executor_backend": "external_launcher"})
    assert found["distributed_executor_backend"] == "external_launcher"
