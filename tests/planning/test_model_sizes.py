"""The numbers of a model that the memory plan is made from, against torch's meta device and peft."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paths import ROOT
from refusals import refused
from small_models import make
from ulorl.config.model_config import LoraConfig
from ulorl.error_codes import ErrorCode
from ulorl.models.lora import add_lora
from ulorl.models.meta_model import make_meta_model
from ulorl.models.model_source import ModelSource
from ulorl.planning.model_sizes import read_sizes

CONFIGS = ROOT / "tests" / "fixtures" / "model_configs"
# vocabulary x hidden, and by layer: attention, MLP, two norms of hidden, and the norms of queries and keys
QWEN3_4B = 151936 * 2560 + 36 * (2560 * 128 * (32 + 8 + 8 + 32) + 3 * 2560 * 9728 + 2 * 2560 + 2 * 128) + 2560
QWEN3_8B = 2 * 151936 * 4096 + 36 * (4096 * 128 * 80 + 3 * 4096 * 12288 + 2 * 4096 + 256) + 4096
QWEN3_30B = 2 * 151936 * 2048 + 48 * (2048 * 128 * 72 + 128 * (3 * 2048 * 768 + 2048) + 2 * 2048 + 256) + 2048


@pytest.mark.parametrize(
    ("name", "parameters"), [("qwen3_4b", QWEN3_4B), ("qwen3_8b", QWEN3_8B), ("qwen3_30b_a3b", QWEN3_30B)]
)
def test_parameters_equal_those_of_torch_on_meta(name: str, parameters: int) -> None:
    source = ModelSource(str(CONFIGS / name))
    sizes = read_sizes(source)
    assert sizes.parameters == sum(p.numel() for p in make_meta_model(source).parameters()) == parameters
    assert sizes.head == 151936 * sizes.hidden
    assert sizes.outside == sizes.head * (1 if sizes.tied else 2) + sizes.hidden


@pytest.mark.parametrize("kind", ["Qwen3", "Llama", "Qwen3Moe"])
def test_adapters_equal_those_of_peft(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    make(kind).config.save_pretrained(tmp_path)
    sizes = read_sizes(ModelSource(str(tmp_path)))
    adapted = make(kind)
    add_lora(adapted, LoraConfig(rank=3))
    assert 3 * sizes.adapter_width == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_a_model_with_other_keys_and_values_is_refused(tmp_path: Path) -> None:
    config: dict[str, Any] = {"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 32}
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["MambaForCausalLM"], **config}))
    with refused(ErrorCode.MODEL_UNSUPPORTED, file=tmp_path):
        read_sizes(ModelSource(str(tmp_path)))
