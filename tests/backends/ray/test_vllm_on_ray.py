"""vLLM in an actor, beside the embedded engine in another (`make test-engines` installs vLLM)."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ulorl.backends.ray.ray_preflight import set_environment
from ulorl.config.backend_config import RayBackendConfig
from ulorl.config.engine_config import TorchEngineConfig, VllmConfig, VllmEngineConfig
from ulorl.engines.decode import rollout
from ulorl.engines.engine_spec import EngineSpec
from ulorl.engines.factory import make_engine
from ulorl.engines.fleet import EngineFleet, FleetSettings
from ulorl.engines.segment_checks import SegmentChecks
from ulorl.models.model_loading import load_model
from ulorl.models.model_source import TINY, ModelSource
from ulorl.types import Request, Sampling

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-engines` runs these")

GREEDY = Sampling(temperature=0)
SETTINGS = VllmEngineConfig(vllm=VllmConfig(process=True, eager=True, memory_fraction=0.1), slots=4)


@pytest.mark.slow
def test_a_fleet_of_an_embedded_engine_and_vllm_decodes_the_same_tokens() -> None:
    set_environment(RayBackendConfig())
    from ulorl.backends.ray.cluster import Needs, Places, connected
    from ulorl.backends.ray.engine_actor import RayEngineWorker
    from ulorl.backends.ray.stored_weights import store_weights

    source = ModelSource(TINY)
    prompts = [np.array([3 + i, 4, 5 + 2 * i], dtype=np.int32) for i in range(12)]
    requests = [Request(i, prompt, 40, GREEDY, seed=i) for i, prompt in enumerate(prompts)]
    specs = [
        EngineSpec(settings, torch.device("cpu"), Sampling(), longest=64)
        for settings in (TorchEngineConfig(slots=4), SETTINGS)
    ]
    model = load_model(source, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.05)
    alone, faults = make_engine(specs[0], source), list[str]()
    with connected(RayBackendConfig(), cpus=4):
        places = Places(Needs(engines=2, ranks=0))
        workers = [RayEngineWorker(spec, source, places, index) for index, spec in enumerate(specs)]
        checks = SegmentChecks(source.eos_ids, source.vocabulary, None)
        settings = FleetSettings(slots=4, group=2, deadline=300)
        fleet = EngineFleet(
            workers,
            remake=lambda index: RayEngineWorker(specs[index], source, places, index),
            checks=checks,
            settings=settings,
            on_fault=faults.append,
        )
        assert _tokens(fleet, requests) == _tokens(alone, requests)
        weights = store_weights(model.named_parameters())
        fleet.load_weights(weights, 1)
        alone.load_weights(model.named_parameters(), 1)
        assert _tokens(fleet, requests) == _tokens(alone, requests)
        assert all(each.tokens > 0 for each in fleet.occupancy)
        assert faults == []
        children = _children(workers[1].pid)
        assert children
        workers[1].kill()
        until = time.monotonic() + 60
        while any(Path(f"/proc/{pid}").exists() for pid in children):
            assert time.monotonic() < until, "vLLM's process outlives its actor"
            time.sleep(0.2)
        assert _tokens(fleet, requests) == _tokens(alone, requests)  # with the weights that the fleet was given
        assert len(faults) == 1
        fleet.close()
        places.close()


def _tokens(engine: object, requests: list[Request]) -> dict[int, list[int]]:
    return {s.sample_id: s.tokens.tolist() for s in rollout(engine, requests)}


def _children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    return [int(child) for child, parent in map(str.split, listed.splitlines()) if int(parent) == pid]
