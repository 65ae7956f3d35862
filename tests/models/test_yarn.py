"""YaRN by configuration: one scaling in learner, engine and saved folders, beyond the length a model was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

import ulorl
from paths import COUNTDOWN
from refusals import refused
from ulorl.config.model_config import RopeConfig
from ulorl.config.training_config import ObjectiveConfig, OptimConfig
from ulorl.engines.decode import rollout
from ulorl.engines.torch.torch_engine import TorchEngine
from ulorl.error_codes import ErrorCode
from ulorl.learner.batching import Row
from ulorl.learner.experience import Experience
from ulorl.learner.policy_learner import LearnerSpec, one_device_learner
from ulorl.models.model_loading import load_model
from ulorl.models.model_source import ModelSource, context_length
from ulorl.models.yarn import rope_overrides
from ulorl.rng import sample_seed
from ulorl.training import run
from ulorl.training.preflight import load_inputs
from ulorl.types import Request, Sampling

RECIPE = COUNTDOWN
V, ORIGINAL, FACTOR = 60, 64, 4.0
YARN = RopeConfig(type="yarn", factor=FACTOR, original_max_position_embeddings=ORIGINAL)
SHAPE = {
    "vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": ORIGINAL, "initializer_range": 0.3,
}  # fmt: skip
THETA = {"rope_type": "default", "rope_theta": 12345.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("rope") / "model"
    Qwen3ForCausalLM(Qwen3Config(**SHAPE, rope_parameters=dict(THETA))).save_pretrained(path)
    return path


def configured(folder: Path, path: Path, **keys: object) -> str:
    """A folder with another config.json, and no weights."""
    changed = json.loads((folder / "config.json").read_text()) | keys
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(changed))
    return str(path)


def load(folder: Path | str, rope: RopeConfig = YARN):
    return load_model(ModelSource(str(folder), rope=rope), dtype=torch.float32, device="cpu")


def test_engine_learner_and_transformers_agree_beyond_the_original_length(folder: Path) -> None:
    """Three segments of 60 tokens: the second and third are prefilled again, and end at 190 of 64 x 4 positions."""
    engine = TorchEngine(load(folder), eos_ids=(), slots=3, prefill_tokens=64)
    assert engine.max_length == 256
    prompts = [np.arange(3, 3 + n, dtype=np.int32) * 7 % V for n in (10, 4, 7, 9)]
    outputs = [np.empty(0, np.int32)] * 4
    recorded: list[list[np.ndarray]] = [[] for _ in prompts]
    for _ in range(3):
        requests = [
            Request(i, p, 60, Sampling(0.85), sample_seed(0, i), output=(o,))
            for i, (p, o) in enumerate(zip(prompts, outputs, strict=True))
        ]
        for segment in rollout(engine, requests):
            recorded[segment.sample_id].append(segment.logprobs)
            outputs[segment.sample_id] = np.concatenate([outputs[segment.sample_id], segment.tokens])
    learner = one_device_learner(
        load(folder), LearnerSpec(OptimConfig(), ObjectiveConfig(), temperature=0.85, max_tokens=180, pad_id=0)
    )
    zeros = np.zeros(180, np.int32)
    rows = [Row(p, o, np.concatenate(r), zeros) for p, o, r in zip(prompts, outputs, recorded, strict=True)]
    scored, _ = learner.score([Experience(row, i, advantage=0.0, correct=False) for i, row in enumerate(rows)])

    yarn = {"rope_type": "yarn", "rope_theta": 12345.0, "factor": 4.0, "original_max_position_embeddings": 64}
    theirs = Qwen3ForCausalLM(Qwen3Config(**SHAPE | {"max_position_embeddings": 256}, rope_parameters=yarn)).eval()
    theirs.load_state_dict(load(folder).state_dict())
    unscaled = load(folder, RopeConfig())
    for row, logprobs in zip(rows, scored, strict=True):
        ids = torch.from_numpy(np.concatenate([row.prompt, row.tokens]).astype(np.int64))[None]
        own, plain = (_logprobs(model, ids, len(row.prompt)) for model in (theirs, unscaled))
        np.testing.assert_allclose(row.logprobs, logprobs, atol=1e-4)
        np.testing.assert_allclose(logprobs, own, atol=1e-4)
        assert np.abs(logprobs - plain).mean() > 0.1  # the scaling matters here


def _logprobs(model: Qwen3ForCausalLM, ids_1T: torch.Tensor, prompt: int) -> np.ndarray:
    with torch.no_grad():
        logprobs_TV = (model(ids_1T).logits[0, prompt - 1 : -1] / 0.85).log_softmax(-1)
    return logprobs_TV.gather(1, ids_1T[0, prompt:, None])[:, 0].numpy()


def test_twice_is_the_same_as_once_and_the_saved_folder_carries_it(folder: Path, tmp_path: Path) -> None:
    once = load(folder)
    wanted = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 12345.0}
    once.save_pretrained(tmp_path)
    for model in (once, load(tmp_path), load(tmp_path, RopeConfig()), AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert model.config.rope_parameters == wanted
        assert context_length(model) == model.config.max_position_embeddings == 256
        assert torch.equal(model.model.rotary_emb.inv_freq, once.model.rotary_emb.inv_freq)
        # attention is sharpened by 0.1 ln(4) + 1 = 1.1386 (YaRN, eq. 22)
        assert model.model.rotary_emb.attention_scaling == pytest.approx(1.13863, abs=1e-5)
    assert load(folder, RopeConfig()).config.rope_parameters == THETA  # nothing was changed where it came from


def test_the_papers_setting() -> None:
    """Section 4.1: 1.5 x 95232 = 142848 positions, enough for a prompt and 131072 tokens of output."""
    paper = ulorl.load([RECIPE], ["model.rope={type='yarn', factor=1.5, original_max_position_embeddings=95232}"])
    assert paper.model.rope.length == 142848


def test_vllm_gets_all_overrides_that_it_needs(folder: Path, tmp_path: Path) -> None:
    assert rope_overrides(ModelSource(str(folder)).config, 64) == {}
    overrides = rope_overrides(ModelSource(str(folder), rope=YARN).config, 256)
    assert overrides["max_position_embeddings"] == 256
    assert overrides["rope_parameters"]["rope_theta"] == 12345.0  # vLLM replaces the whole table
    own = {"rope_type": "yarn", "rope_theta": 5.0, "factor": 4.0, "original_max_position_embeddings": 64}
    by_itself = ModelSource(
        configured(folder, tmp_path, rope_parameters=own)
    ).config  # as Qwen3's model card asks for it
    assert rope_overrides(by_itself, context_length(by_itself) or 0)["max_position_embeddings"] == 256


@pytest.mark.parametrize(
    ("table", "code", "key"),
    [
        ('{type="yarn", factor=1.0, original_max_position_embeddings=64}', ErrorCode.CONFIG_CONFLICT, "factor"),
        ('{type="yarn", factor=0.5, original_max_position_embeddings=64}', ErrorCode.CONFIG_CONFLICT, "factor"),
        ('{type="yarn", factor=2}', ErrorCode.CONFIG_MISSING_KEY, "original_max_position_embeddings"),
        ('{type="linear", factor=2}', ErrorCode.CONFIG_BAD_VALUE, "type"),
        ("{factor=2, original_max_position_embeddings=64}", ErrorCode.CONFIG_CONFLICT, "type"),
        ('{type="yarn", factor=2, original=64}', ErrorCode.CONFIG_UNKNOWN_KEY, "original"),
    ],
)
def test_wrong_settings_are_refused_with_the_key(table: str, code: ErrorCode, key: str) -> None:
    with refused(code, key=f"model.rope.{key}"):
        ulorl.load([RECIPE], [f"model.rope={table}"])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"rope_parameters": {**THETA, "rope_type": "linear", "factor": 2.0}},
            "(rope_type=linear, factor=2.0)",
        ),
        (
            {"rope_parameters": {**THETA, "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}},
            "(rope_type=yarn, factor=2.0, original_max_position_embeddings=64)",
        ),
        ({"max_position_embeddings": 512}, "= 256 positions"),
        ({"original_max_position_embeddings": 32}, "32, in config.json"),
    ],
)
def test_a_model_that_has_its_own_is_refused(keys: dict, message: str, folder: Path, tmp_path: Path) -> None:
    path = configured(folder, tmp_path, **keys)
    with refused(ErrorCode.MODEL_UNSUPPORTED, key="model.rope", file=path) as error:
        _ = ModelSource(path, rope=YARN).config
    assert message in str(error.value)
    _ = ModelSource(path).config  # without model.rope it is taken as it is


def test_a_model_without_rotary_positions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with refused(ErrorCode.MODEL_UNSUPPORTED, key="model.rope"):
        _ = ModelSource(str(tmp_path), rope=YARN).config


def test_a_run_trains_resumes_and_evaluates_beyond_the_models_own_length(tmp_path: Path) -> None:
    """The tiny reasoner has 1024 positions; 2 x 1024 hold 1500 tokens of output."""
    tree = [
        "model.rope={type='yarn', factor=2, original_max_position_embeddings=1024}", "rollout.max_tokens=1500",
        "rollout.segments=50", "rollout.prompts=2", "rollout.group=2", "data.size=20", "eval.problems=2",
        "eval.max_tokens=8", "model.threads=1", "log.report=false", f"run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    with refused(ErrorCode.MODEL_CONTEXT, key="rollout.max_tokens"):
        load_inputs(ulorl.load([RECIPE], [*tree, "model.rope={}"]))
    ulorl.train(ulorl.load([RECIPE], [*tree, "steps=1"]))
    result = ulorl.resume(tmp_path / "run", ["steps=2"])
    for saved in (result.model, result.dir / "checkpoints" / "step_000002" / "model"):
        written = json.loads((saved / "config.json").read_text())
        assert written["max_position_embeddings"] == 2048
        assert written["rope_parameters"]["factor"] == 2.0
    trained = ulorl.load([RECIPE], [*tree, f"model.path={result.model}"])
    assert run.evaluate_config(trained).samples == 1
