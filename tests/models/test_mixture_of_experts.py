"""Mixtures of experts: the same log-probs everywhere, a router without noise, and no loss of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import PreTrainedModel

from tiny_learner import GROUPS
from ulorl.config.training_config import ObjectiveConfig, OptimConfig
from ulorl.engines.decode import rollout
from ulorl.engines.torch.torch_engine import TorchEngine
from ulorl.learner.batching import Row
from ulorl.learner.experience import Experience
from ulorl.learner.model_checks import check_head
from ulorl.learner.policy_learner import LearnerSpec, PolicyLearner, one_device_learner
from ulorl.models.meta_model import checkpoint_names
from ulorl.models.model_loading import load_model
from ulorl.models.model_source import ModelSource
from ulorl.rng import sample_seed
from ulorl.types import Request, Sampling

V = 31
SMALL: dict[str, Any] = {
    "vocab_size": V, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 128, "initializer_range": 0.3,
    "num_experts_per_tok": 2, "eos_token_id": 2, "bos_token_id": None, "pad_token_id": None,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 8, "decoder_sparse_step": 1, "norm_topk_prob": True},
    "Qwen2Moe": {
        "num_experts": 4, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8, "decoder_sparse_step": 1,
    },
    "Mixtral": {"num_local_experts": 4, "router_jitter_noise": 0.5, "sliding_window": None},
    "Olmoe": {"num_experts": 4},
}  # fmt: skip
ROUTER = {"output_router_logits": True, "router_aux_loss_coef": 10.0}


def make(kind: str = "Qwen3Moe", **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    made = getattr(transformers, f"{kind}Config")(**{**SMALL, **KINDS[kind], **settings})
    model: PreTrainedModel = getattr(transformers, f"{kind}ForCausalLM")(made)
    return model.eval()


def load(folder: Path) -> PreTrainedModel:
    return load_model(ModelSource(str(folder)), dtype=torch.float32, device="cpu")


def learner(model: PreTrainedModel, **optim: Any) -> PolicyLearner:
    settings = OptimConfig(**{"lr": 1e-2, **optim})
    return one_device_learner(
        model, LearnerSpec(settings, ObjectiveConfig(), temperature=0.85, max_tokens=16, pad_id=0)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_engine_learner_and_transformers_agree_before_and_after_an_update(kind: str, tmp_path: Path) -> None:
    make(kind).save_pretrained(tmp_path)
    trained = learner(load(tmp_path))
    check_head(trained.model)
    engine = TorchEngine(load(tmp_path), eos_ids=(), slots=3, prefill_tokens=16)
    for version in range(2):
        if version:
            assert trained.update(GROUPS).steps == 1
            engine.load_weights(trained.publish().tensors, version)
        prompts = [np.arange(3, 3 + n, dtype=np.int32) for n in (9, 2, 5, 7)]
        requests = [Request(i, p, 30, Sampling(0.85), sample_seed(0, i)) for i, p in enumerate(prompts)]
        found = {s.sample_id: s for s in rollout(engine, requests)}
        rows = [Row(p, found[i].tokens, found[i].logprobs, found[i].versions) for i, p in enumerate(prompts)]
        scored, _ = trained.score([Experience(row, i, 0.0, False) for i, row in enumerate(rows)])
        for row, logprobs in zip(rows, scored, strict=True):
            ids = torch.from_numpy(np.concatenate([row.prompt, row.tokens]).astype(np.int64))[None]
            with torch.no_grad():
                logits_TV = trained.model(ids).logits[0, len(row.prompt) - 1 : -1] / 0.85
            own = logits_TV.log_softmax(-1).gather(1, ids[0, len(row.prompt) :, None])[:, 0]
            np.testing.assert_allclose(row.logprobs, logprobs, atol=1e-4)
            np.testing.assert_allclose(logprobs, own.numpy(), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_changes_experts_and_router(kind: str) -> None:
    model = make(kind)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    learner(model).update(GROUPS)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == before.keys()
    assert sum("experts" in name for name in before) >= 4  # two layers, each with two of them
    assert sum(".gate.weight" in name for name in before) == 2


@pytest.mark.parametrize("kind", ["Qwen3Moe", "Mixtral"])
def test_the_routers_own_loss_is_no_part_of_ours(kind: str, tmp_path: Path) -> None:
    """Where config.json switches it on, it is switched off in the loaded and in the saved model; and even left on, our
    gradient is that of a model that never heard of it."""
    make(kind, **ROUTER).save_pretrained(tmp_path)
    ids = torch.arange(3, 20)[None]
    with_loss = make(kind, **ROUTER)
    assert with_loss(ids).aux_loss > 0.1
    loaded = load(tmp_path)
    assert loaded(ids).get("aux_loss") is None
    loaded.save_pretrained(tmp_path / "saved")
    assert not json.loads((tmp_path / "saved" / "config.json").read_text())["output_router_logits"]

    moments = []
    for model in (make(kind, router_aux_loss_coef=0.0), loaded, with_loss):
        of = learner(model, grad_clip=1e9)
        of.update(GROUPS)
        of.save(tmp_path / "moments")  # after one update exp_avg is (1 - beta1) x gradient
        saved = load_file(tmp_path / "moments" / "optimizer.safetensors")
        moments.append({k: v for k, v in saved.items() if k.endswith("exp_avg")})
    assert sum(".gate.weight" in name and bool(tensor.any()) for name, tensor in moments[0].items()) == 2
    for found in moments[1:]:
        assert all(torch.equal(found[name], tensor) for name, tensor in moments[0].items())


@pytest.mark.parametrize("recompute", [False, True])
def test_the_router_is_without_noise(recompute: bool) -> None:
    """Mixtral's jitter is for transformers' training mode; recomputed activations enable it in no layer."""
    of, rows = learner(make("Mixtral"), recompute=recompute), [m.sample for g in GROUPS for m in g.members]
    experience = [
        Experience(Row(s.prompt, s.tokens, s.logprobs, s.versions), s.id, advantage=0.0, correct=False) for s in rows
    ]
    first, second = of.score(experience)[0], of.score(experience)[0]
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    of.update(GROUPS)
    plain = learner(make("Mixtral", router_jitter_noise=0.0))
    plain.update(GROUPS)
    for name, tensor in plain.publish().tensors:
        torch.testing.assert_close(dict(of.publish().tensors)[name], tensor, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoint_names_are_those_of_the_files(kind: str, tmp_path: Path) -> None:
    """An expert a tensor, as everyone exchanges them, while transformers holds a layer's experts as one."""
    model = make(kind)
    model.save_pretrained(tmp_path)
    files = load_file(tmp_path / "model.safetensors")
    convert = checkpoint_names(ModelSource(str(tmp_path)))
    for named in (model.named_parameters(), load(tmp_path).named_parameters()):
        found = dict(convert((name, p.detach()) for name, p in named))
        assert found.keys() == files.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in files.items())
    assert sum(".experts.3." in name for name in files) == 2 * 3  # layers x (gate, up, down)
    with pytest.raises(ValueError, match="unknown"):
        list(convert(files.items()))
