"""Models that are loaded into shards, against the same models loaded whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import transformers
from safetensors.torch import load_file, save_file

from processes import run_processes
from refusals import refused
from sharded_models import Policy, full, load_sharded_model
from small_models import make
from ulorl.config.model_config import RopeConfig
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.models.meta_loading import load_into_shards, make_empty_model
from ulorl.models.model_loading import load_model
from ulorl.models.model_source import ModelSource
from ulorl.models.weight_conversion import WeightConversion
from ulorl.models.yarn import UNSCALED

YARN = RopeConfig(type="yarn", factor=4.0, original_max_position_embeddings=64)
MODELS: list[tuple[str, dict[str, Any], RopeConfig]] = [
    ("Qwen3", {}, YARN),
    ("Qwen2", {}, UNSCALED),  # tied
    ("Qwen3Moe", {"num_experts": 5}, YARN),
    ("Gemma2", {}, UNSCALED),  # tied, and a buffer beside the embedding
]


def damage(folder: Path, to: Path, **changes: Any) -> Path:
    """Copy a model's folder with other tensors; None removes one."""
    copy = Path(shutil.copytree(folder, to))
    tensors = load_file(copy / "model.safetensors")
    for name, value in changes.items():
        tensors[name.replace("__", ".")] = value
    save_file({n: t for n, t in tensors.items() if t is not None}, copy / "model.safetensors", {"format": "pt"})
    return copy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind, settings, _ in MODELS:
        model = make(kind, **settings)
        model.generation_config.max_new_tokens = 7
        model.save_pretrained(folder / kind, max_shard_size=15_000 if kind == "Qwen3" else "1GB")
    qwen2 = folder / "Qwen2"
    up = load_file(qwen2 / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    up[-1, -1] = torch.nan  # in the last rank's shard alone
    damage(qwen2, folder / "nan", model__layers__1__mlp__up_proj__weight=up)
    damage(qwen2, folder / "missing", model__norm__weight=None)
    damage(qwen2, folder / "shape", model__norm__weight=torch.ones(3))
    damage(qwen2, folder / "surplus", model__layers__7__mlp__up_proj__weight=up)
    old = Path(shutil.copytree(qwen2, folder / "old_names"))
    tensors = load_file(old / "model.safetensors")
    save_file({name.removeprefix("model."): t for name, t in tensors.items()}, old / "model.safetensors")
    return folder


def differences(policy: Policy, source: ModelSource, dtype: torch.dtype = torch.float32) -> list[str]:
    """Return what differs between a model loaded into shards and the same loaded whole."""
    model, whole = policy.model, load_model(source, dtype=dtype, device="cpu")
    mine = {n: full(t) for n, t in [*model.named_parameters(), *model.named_buffers()]}
    theirs = dict([*whole.named_parameters(), *whole.named_buffers()])
    found = [n for n in mine.keys() | theirs.keys() if not torch.equal(mine[n], theirs[n])]
    found += [n for n in mine if mine[n].dtype != theirs[n].dtype]
    tied = [of.get_output_embeddings().weight is of.get_input_embeddings().weight for of in (model, whole)]
    ids = torch.arange(3, 80)[None]
    with torch.no_grad():
        logits = policy(ids), whole(input_ids=ids, use_cache=False).logits
    same = {
        "ties": tied[0] == tied[1],
        "logits": torch.equal(*logits),
        "mode": model.training == whole.training,
        "config": model.config.to_dict() == whole.config.to_dict(),
        "generation": model.generation_config.to_dict() == whole.generation_config.to_dict(),
    }
    return found + [name for name, good in same.items() if not good]


@contextmanager
def no_places() -> Iterator[None]:
    """Let no tensor of the files be read in parts, as if transformers had to compute them."""
    with mock.patch.object(WeightConversion, "places", return_value=None):
        yield


def compare(folder: Path) -> tuple[dict[str, list[str]], list[tuple[str, str]]]:
    """Run in every process: load all models, and all that must be refused."""
    rank = dist.get_rank()
    found: dict[str, list[str]] = {}
    for kind, _, rope in MODELS:
        source = ModelSource(str(folder / kind), rope=rope)
        found[kind] = differences(load_sharded_model(source), source)
    source = ModelSource(str(folder / "Qwen3Moe"), rope=YARN)
    found["bfloat16"] = differences(load_sharded_model(source, torch.bfloat16), source, torch.bfloat16)
    with no_places():
        found["scattered"] = differences(load_sharded_model(source), source)
    old = ModelSource(str(folder / "old_names"))
    found["old names"] = differences(load_sharded_model(old), old)
    refusals: list[tuple[str, str]] = []
    for name in ("nan", "missing", "shape", "surplus", "nan" if rank else "nowhere"):
        policy = load_sharded_model(ModelSource(str(folder / "Qwen2")))
        with pytest.raises(UserError) as refusal:
            load_into_shards(policy.model, ModelSource(str(folder / name)))
        refusals.append((refusal.value.code.value, str(refusal.value)))
    return found, refusals


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_shards_are_the_model_that_is_loaded_whole(world: int, folder: Path) -> None:
    results = run_processes(compare, world, folder, timeout=120)
    for found, refusals in results:
        assert found == {name: [] for name in found}
        assert refusals[:4] == results[0][1][:4]  # the same on every rank
        assert [code for code, _ in refusals[:4]] == [ErrorCode.MODEL_WEIGHTS.value] * 4
        says = ("layers.1.mlp.up_proj.weight holds NaN", "lack 1 of", "[3] in the file, [16]", "layers.7")
        assert all(text in message for text, (_, message) in zip(says, refusals[:4], strict=True))
    assert results[0][1][4][0] == ErrorCode.MODEL_NOT_FOUND.value


def test_one_process_without_a_group_loads_all(folder: Path) -> None:
    for kind, _, rope in MODELS:
        source = ModelSource(str(folder / kind), rope=rope)
        assert differences(load_sharded_model(source), source) == []
    with refused(ErrorCode.MODEL_WEIGHTS):
        load_sharded_model(ModelSource(str(folder / "nan")))


def test_a_shard_border_inside_a_tensor_of_the_files(folder: Path) -> None:
    """FSDP cuts experts apart; another cut must give the same."""
    from ulorl.models import meta_loading

    source = ModelSource(str(folder / "Qwen3Moe"))
    whole = load_model(source, dtype=torch.float32, device="cpu").state_dict()
    name = "model.layers.0.mlp.experts.gate_up_proj"
    places = (WeightConversion(make_empty_model(source, torch.float32)).places() or {})[name]
    tensors = load_file(folder / "Qwen3Moe" / "model.safetensors")
    for part in ((slice(1, 3), slice(0, 16), slice(0, 16)), (slice(0, 5), slice(5, 9), slice(2, 7))):
        local = torch.empty(whole[name][part].shape)
        begins = tuple(piece.start for piece in part)
        meta_loading._fill(local, begins, tuple(whole[name].shape), places, tensors.__getitem__)
        assert torch.equal(local, whole[name][part])


def test_layers_that_stay_in_float32(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.Qwen3ForCausalLM, "_keep_in_fp32_modules_strict", ["mlp.down_proj", "1*q_norm"])
    source = ModelSource(str(folder / "Qwen3"))
    policy = load_sharded_model(source, torch.bfloat16)
    assert policy.model.model.layers[0].mlp.down_proj.weight.dtype == torch.float32
    whole = load_model(source, dtype=torch.bfloat16, device="cpu")
    for (name, mine), theirs in zip(policy.model.state_dict().items(), whole.state_dict().values(), strict=True):
        assert mine.dtype == theirs.dtype, name
        assert torch.equal(mine, theirs)


def test_a_model_of_the_hub_is_checked_after_its_download(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def source(name: str) -> ModelSource:
        monkeypatch.setattr("ulorl.models.meta_loading.snapshot_download", lambda *_, **__: str(folder / name))
        hub = ModelSource("somebody/model")
        hub.__dict__["config"] = ModelSource(str(folder / name)).config
        return hub

    policy = load_sharded_model(ModelSource(str(folder / "Qwen2")))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.fill_(torch.nan)
    load_into_shards(policy.model, source("Qwen2"))
    assert differences(policy, ModelSource(str(folder / "Qwen2"))) == []
    with refused(ErrorCode.MODEL_WEIGHTS, file="somebody/model"):
        load_into_shards(policy.model, source("missing"))
    hub = source("Qwen2")
    monkeypatch.undo()  # the download fails, because no test reaches the hub
    with refused(ErrorCode.MODEL_WEIGHTS, file="somebody/model"):
        load_into_shards(policy.model, hub)


def test_buffers_that_transformers_does_not_compute_are_refused(folder: Path) -> None:
    source = ModelSource(str(folder / "Qwen3"))
    model = make_empty_model(source, torch.float32)
    model.model.layers[0].mlp.register_buffer("odd", torch.ones(2, device="meta"), persistent=False)
    model.to_empty(device="cpu")
    with refused(ErrorCode.MODEL_UNSUPPORTED) as refusal:
        load_into_shards(model, source)
    assert "model.layers.0.mlp.odd" in str(refusal.value)


def test_quantized_weights_are_refused(folder: Path) -> None:
    source = ModelSource(str(folder / "Qwen3"))
    model = make_empty_model(source, torch.float32).to_empty(device="cpu")
    source.config.quantization_config = {"quant_method": "fp8"}
    with refused(ErrorCode.MODEL_UNSUPPORTED, file=source.path):
        load_into_shards(model, source)
