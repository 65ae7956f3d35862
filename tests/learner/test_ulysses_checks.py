"""Which models can share their sequences between processes, from a configuration alone and from a model on meta."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedConfig

from refusals import refused
from small_models import KINDS, SMALL
from ulorl.error_codes import ErrorCode
from ulorl.learner.ulysses_checks import check_ulysses

HEADS = {"num_attention_heads": 8, "num_key_value_heads": 2}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0], "factor": 2.0,
            "original_max_position_embeddings": 32, "rope_theta": 1e4}  # fmt: skip


def config(kind: str, **settings: Any) -> PreTrainedConfig:
    return getattr(transformers, f"{kind}Config")(**{**SMALL, **HEADS, **KINDS.get(kind, {}), **settings})


@pytest.mark.parametrize(
    ("kind", "processes", "attention", "settings"),
    [
        ("Qwen3", 1, "eager", {}),
        ("Qwen3", 2, "sdpa", {}),
        ("Qwen3", 8, "sdpa", {}),
        ("Qwen3Moe", 4, "sdpa", {"num_key_value_heads": 8}),
        ("Qwen3", 4, "flash_attention_2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
        ("Mistral", 4, "sdpa", {"sliding_window": None}),
        ("Mistral", 4, "flash_attention_2", {"sliding_window": 8}),
        ("Gemma2", 4, "flash_attention_2", {}),
        ("Qwen3", 4, "sdpa", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}}),
        ("Llama", 4, "sdpa", {}),
        ("DeepseekV3", 4, "sdpa", {}),
        ("Olmo2", 4, "sdpa", {}),
        ("Glm4", 4, "sdpa", {}),
    ],
)
def test_models_that_can(kind: str, processes: int, attention: str, settings: dict[str, Any]) -> None:
    check_ulysses(config(kind, **settings), processes, attention)


@pytest.mark.parametrize(
    ("kind", "processes", "attention", "settings"),
    [
        pytest.param("Qwen3", 3, "sdpa", {}, id="the heads cannot be divided"),
        pytest.param("Qwen3", 16, "sdpa", {}, id="more processes than heads"),
        pytest.param("Qwen3", 4, "sdpa", {"num_attention_heads": 12, "num_key_value_heads": 6}, id="key-value heads"),
        pytest.param("Qwen3", 2, "eager", {}, id="eager"),
        pytest.param("Gemma2", 2, "sdpa", {}, id="windows of some layers"),
        pytest.param("Mistral", 2, "sdpa", {"sliding_window": 8}, id="windows of all layers"),
        pytest.param("Gemma2", 2, "sdpa", {"layer_types": ["full_attention"] * 2}, id="a soft-cap"),
        pytest.param("GptOss", 2, "flash_attention_2", {}, id="sinks"),
        pytest.param("Qwen3Next", 2, "sdpa", {}, id="linear attention"),
        pytest.param("Lfm2", 2, "sdpa", {"layer_types": ["conv", "full_attention"]}, id="convolutions"),
        pytest.param("Mamba", 2, "sdpa", {}, id="a recurrent state"),
        pytest.param("FalconH1", 2, "sdpa", {}, id="attention beside a recurrent state"),
        pytest.param("Bloom", 2, "sdpa", {"n_head": 8}, id="attention of its own"),
        pytest.param("Phi3", 2, "sdpa", {"rope_parameters": LONGROPE, "sliding_window": None}, id="longrope"),
        pytest.param("Llama", 2, "sdpa", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, id="dynamic"),
    ],
)
def test_models_that_cannot(kind: str, processes: int, attention: str, settings: dict[str, Any]) -> None:
    with refused(ErrorCode.MODEL_UNSUPPORTED, key="optim.sequence_parallel"):
        check_ulysses(config(kind, **settings), processes, attention)


def test_a_model_on_meta() -> None:
    with torch.device("meta"):
        good, bad = (AutoModelForCausalLM.from_config(config(kind)) for kind in ("Qwen3", "Gemma2"))
    check_ulysses(good, 8, "sdpa")
    with refused(ErrorCode.MODEL_UNSUPPORTED, key="optim.sequence_parallel"):
        check_ulysses(bad, 2, "sdpa")
