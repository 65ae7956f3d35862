"""The memory of a run by hand arithmetic and against what autograd saves, and the advice when it is too much."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from paths import ROOT
from refusals import refused
from small_models import make
from ulorl.cli.main import app
from ulorl.config.loading import load
from ulorl.error_codes import ErrorCode
from ulorl.models import attention
from ulorl.models.model_source import ModelSource
from ulorl.planning.layer_memory import precision_of, saved_bytes
from ulorl.planning.learner_memory import LearnerSetting, learner_memory
from ulorl.planning.memory_plan import GB
from ulorl.planning.model_sizes import ModelSizes, read_sizes
from ulorl.planning.recipe_settings import plan_recipe

CONFIGS = ROOT / "tests" / "fixtures" / "model_configs"
SMALL = ModelSizes((1000, 1000), 500, True, 10, 50, 2, 1, 5, 20, 0, 0, True, 0)
ALONE = LearnerSetting(1, 1, "float32", False, False, True, 100, 80, 100)
LONG = LearnerSetting(8, 8, "float32", True, False, True, 133_120, 131_072, 16_640)


@pytest.mark.parametrize(
    ("kind", "dtype", "autocast", "cpu"),
    [
        (kind, dtype, autocast, cpu)
        for kind in ("Qwen3", "Qwen3Moe", "Llama")
        for dtype, autocast, cpu in (
            ("float32", False, True), ("float32", False, False), ("bfloat16", False, True), ("float32", True, True),
        )
        # on a CPU, torch.autocast leaves grouped products in float32, with copies that depend on routing
        if not (kind == "Qwen3Moe" and autocast)
    ],
)  # fmt: skip
def test_a_layer_saves_what_autograd_saves(
    kind: str, dtype: str, autocast: bool, cpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cpu=False: with the attention of float32 on a GPU."""
    heads = {} if cpu else {"num_attention_heads": 4, "num_key_value_heads": 2}
    model, tokens = make(kind, max_position_embeddings=512, **heads).to(getattr(torch, dtype)), 256
    model.config.save_pretrained(tmp_path)
    if not cpu:
        monkeypatch.setattr(attention, "_in_float32_on_gpu", lambda _: True)
        model.set_attn_implementation(attention.REPEATED)
    layer, positions = model.model.layers[0], torch.arange(tokens)[None]
    x = torch.randn(1, tokens, 16, dtype=getattr(torch, dtype), requires_grad=True)
    rotary = [t.detach() for t in model.model.rotary_emb(x, positions)]
    known = {t.untyped_storage().data_ptr() for t in (x, *rotary, *layer.parameters())}
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast, cache_enabled=False),
    ):
        layer(x, position_embeddings=tuple(rotary), attention_mask=None, position_ids=positions)
    found = sum(t.untyped_storage().nbytes() for t in saved.values())
    copies = 2 * sum(p.numel() for p in layer.parameters() if p.ndim > 1) if autocast else 0
    precision = precision_of(dtype, autocast=autocast, sharded=False)
    planned = saved_bytes(read_sizes(ModelSource(str(tmp_path))), precision, cpu=cpu)
    assert (found - copies) / tokens == pytest.approx(planned, rel=0.02)


def test_state_by_hand() -> None:
    memory = learner_memory(SMALL, ALONE)
    assert (memory.parameters, memory.gradients, memory.moments, memory.host) == (10_000, 10_000, 20_000, 0)
    shared = learner_memory(SMALL, replace(ALONE, ranks=2, offload=True))
    assert (shared.parameters, shared.gradients, shared.moments, shared.host) == (5_000, 5_000, 0, 20_000)


def test_the_layer_phase_by_hand() -> None:
    phase = next(p for p in learner_memory(SMALL, replace(ALONE, ranks=2)).phases if p.name == "layer, backward")
    assert phase.gathered == 4 * (2 * 1000 + 500)  # this layer, the next one, and the tied embedding and head
    assert phase.in_flight == 4 * (1000 + 500) + 4 * 1000 + 4 * 500  # own gradients, those being added, their sum
    assert phase.checkpoints == 100 * 2 * 10 * 4
    saved = 20 * 10 + 8 + 4 * (2 * 10 + 2 * 5) + 8 + 8 * 15 + 4 * 3 + 16 * 20
    assert phase.activations == 100 * (saved + 2 * 4 * 20 + 4 * 10)


@pytest.mark.parametrize(
    ("name", "state", "checkpoints", "layer", "cached", "total"),
    [("qwen3_4b", 8.0, 3.1, 3.5, 19.6, 18), ("qwen3_8b", 16.4, 4.9, 4.3, 19.6, 33),
     ("qwen3_30b_a3b", 61.1, 3.3, 5.0, 13.1, 78)],
)  # fmt: skip
def test_the_known_sums_at_128k(
    name: str, state: float, checkpoints: float, layer: float, cached: float, total: float
) -> None:
    """The estimates that the design began with: 8 GPUs, 133,120 tokens, all shared. They add up head and layer, which
    are not held at the same time, so the planned peak is lower."""
    sizes = read_sizes(ModelSource(str(CONFIGS / name)))
    memory = learner_memory(sizes, LONG)
    assert memory.state / GB == pytest.approx(state, abs=0.06)
    assert memory.largest.checkpoints / GB == pytest.approx(checkpoints, abs=0.06)
    assert memory.largest.activations / GB == pytest.approx(layer, rel=0.15)
    assert 2 * sizes.cache_values * LONG.longest / GB == pytest.approx(cached, abs=0.06)
    assert 0.9 * total < memory.peak / GB < 1.03 * total


@pytest.mark.parametrize("name", ["qwen3_4b", "qwen3_8b", "qwen3_30b_a3b"])
def test_recipes_fit(name: str) -> None:
    config = load([str(ROOT / "recipes" / f"{name}.toml")], [f"model.path={CONFIGS / name}"])
    assert plan_recipe(config, 80).fits


def test_advice_makes_the_run_fit() -> None:
    recipe = [str(ROOT / "recipes" / "qwen3_30b_a3b.toml")]
    overrides = [f"model.path={CONFIGS / 'qwen3_30b_a3b'}", "backend.ranks=8"]
    plan = plan_recipe(load(recipe, overrides), 70)
    assert [change.overrides for change in plan.changes[:2]] == [("optim.offload=true",), ("backend.ranks=16",)]
    for change in plan.changes[:2]:
        assert plan_recipe(load(recipe, [*overrides, *change.overrides]), 70).fits


def test_advice_that_takes_more_processes_gives_vllm_one_of_its_own() -> None:
    """`check_processes` refuses vLLM in a process of the learner."""
    recipe = [str(ROOT / "recipes" / "gsm8k.toml")]
    alone = [f"model.path={CONFIGS / 'qwen3_8b'}", "engine.kind=vllm", "engine.vllm.sleep=true"]
    plan = plan_recipe(load(recipe, [*alone, "optim.offload=true", "optim.recompute=true"]), 80)
    advised = [override.split() for change in plan.changes for override in change.overrides if "ranks" in override]
    assert advised
    for words in advised:
        assert "engine.vllm.process=true" in words
        assert load(recipe, [*alone, *words]).engine.vllm.process
    own = plan_recipe(load(recipe, [*alone, "engine.vllm.process=true", "optim.offload=true"]), 80)
    assert any("ranks" in override for change in own.changes for override in change.overrides)
    assert not any("process" in override for change in own.changes for override in change.overrides)


def test_the_command(tmp_path: Path) -> None:
    arguments = ["plan", "memory", str(ROOT / "recipes" / "qwen3_4b.toml"), f"model.path={CONFIGS / 'qwen3_4b'}"]
    done = CliRunner().invoke(app, [*arguments, "--json", str(tmp_path / "plan.json")])
    assert done.exit_code == 0
    assert "It fits: 8 GPUs of 80 GB." in done.output
    assert (tmp_path / "plan.json").stat().st_size
    assert CliRunner().invoke(app, [*arguments, "--gpu-memory", "10"]).exit_code == 1


def test_the_section_in_cluster_md_is_up_to_date() -> None:
    maker = runpy.run_path(str(ROOT / "docs" / "make_memory_table.py"))
    page = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    assert page == maker["with_section"](page), "run docs/make_memory_table.py"


def test_an_unknown_number_of_processes_is_refused() -> None:
    overrides = [f"model.path={CONFIGS / 'qwen3_4b'}", "backend.kind=torchrun"]
    with refused(ErrorCode.CONFIG_MISSING_KEY, key="backend.ranks"):
        plan_recipe(load([str(ROOT / "recipes" / "countdown.toml")], overrides), 80)
