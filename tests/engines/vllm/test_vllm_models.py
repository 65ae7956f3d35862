"""Families of models and long contexts: each needs an engine of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from typer.testing import CliRunner

import ulorl
from paths import COUNTDOWN
from refusals import refused
from ulorl.cli.main import app
from ulorl.engines.factory import make_engine
from ulorl.error_codes import ErrorCode
from ulorl.models.model_source import TINY, ModelSource
from ulorl.planning.latency_profile import read_profile
from ulorl.training.specifications import engine_spec, model_source

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-engines` runs these")

from vllm_engines import (
    PARITY,
    VLLM,
    learner,
    perturb,
    play,
    prompt,
    request,
    start,
    tight_check,
    transformers_logprobs,
)


@pytest.mark.parametrize("family", ["llama_untied", "llama_tied", "qwen2", "qwen3_moe"])
def test_new_weights_reach_every_family(family: str, tmp_path: Path) -> None:
    """Tied and untied heads, biases, experts: after each load the weight check passes."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": 320, "initializer_range": 0.3, "eos_token_id": 1,
        "bos_token_id": None,
    }  # fmt: skip
    makers: dict[str, Callable[[], PreTrainedModel]] = {
        "llama_untied": lambda: LlamaForCausalLM(LlamaConfig(**shape)),
        "llama_tied": lambda: LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**shape)),
        "qwen3_moe": lambda: Qwen3MoeForCausalLM(
            Qwen3MoeConfig(**shape, head_dim=32, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
        ),
    }
    makers[family]().save_pretrained(tmp_path)
    trained, check = learner(str(tmp_path)), tight_check()
    with closing(start(str(tmp_path))) as engine:
        assert check(engine, trained).max < PARITY
        for trained.version in (1, 2):
            perturb(trained.model, trained.version)
            with refused(ErrorCode.ENGINE_MISMATCH):
                check(engine, trained)  # before the load: the check would notice
            engine.load_weights(trained.publish().tensors, trained.version)
            assert check(engine, trained).max < PARITY


@pytest.mark.parametrize("where", ["recipe", "config.json"])
def test_yarn_beyond_the_original_length(where: str, tmp_path: Path) -> None:
    """64 x 4 positions, prompts of 100, and a second segment that prefills the first. From our recipe, or from a
    config.json that leaves max_position_embeddings at 64, as Qwen's model cards write it."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": 111, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 32, "initializer_range": 0.3, "max_position_embeddings": 64,
    }  # fmt: skip
    yarn = {"rope_type": "yarn", "rope_theta": 12345.0, "factor": 4.0, "original_max_position_embeddings": 64}
    own = {"rope_type": "default", "rope_theta": 12345.0} if where == "recipe" else yarn
    made = Qwen3ForCausalLM(Qwen3Config(**shape, eos_token_id=1, bos_token_id=None, rope_parameters=dict(own)))
    made.save_pretrained(tmp_path)
    ModelSource(TINY).tokenizer.save_pretrained(tmp_path)
    rope = ["model.rope={type='yarn', factor=4, original_max_position_embeddings=64}"] if where == "recipe" else []
    cfg = ulorl.load([COUNTDOWN], [*VLLM, f"model.path={tmp_path}", "rollout.temperature=0.85", *rope])
    theirs = Qwen3ForCausalLM(Qwen3Config(**shape, rope_parameters=dict(yarn))).eval()
    theirs.load_state_dict(made.state_dict())
    with closing(make_engine(engine_spec(cfg, longest=256), model_source(cfg))) as engine:
        rounds = [[request(i, 60, tokens=prompt(i, 100)) for i in range(8)]]
        first = play(engine, rounds[0])
        carried = [np.concatenate([r.tokens, first[r.sample_id].tokens]).astype(np.int32) for r in rounds[0]]
        rounds.append([request(i, 40, tokens=tokens) for i, tokens in enumerate(carried)])
        for requests, found in zip(rounds, (first, play(engine, rounds[1])), strict=True):
            for r in requests:
                expected = transformers_logprobs(theirs, r.tokens, found[r.sample_id], 0.85)
                assert np.abs(found[r.sample_id].logprobs - expected).max() < PARITY
    assert max(map(len, carried)) > 160


def test_a_profile_of_a_recipe_measures_vllm_and_its_memory(tmp_path: Path) -> None:
    """4 slots of 256 tokens, which vLLM on a CPU reserves in whole blocks."""
    file = tmp_path / "profile.json"
    command = [
        "bench", "engine", "model.path=ulorl:tiny", "data.kind=countdown", "data.size=9", "data.max_prompt_tokens=56",
        "rollout.max_tokens=200", "engine.kind=vllm", "engine.vllm.eager=true", "engine.slots=4",
        "--profile", str(file), "--quick",
    ]  # fmt: skip
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    profile = read_profile(str(file))
    assert profile.name.startswith("ulorl:tiny, float32, vllm engine")
    assert (profile.decode.rows, profile.decode.contexts) == ((1, 2, 4), (32, 128, 224))
    assert all(seconds > 0 for line in profile.decode.seconds for seconds in line)
    assert profile.kv_tokens >= 4 * 256
    assert "assumption" not in profile.sources["kv_tokens"]
    assert profile.prefill_padding is None
