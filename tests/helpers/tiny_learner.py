"""A learner over a small random model, and groups of made-up samples to train it on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from ulorl.config.training_config import ObjectiveConfig, OptimConfig
from ulorl.learner.experience import prepare
from ulorl.learner.policy_learner import LearnerSpec, PolicyLearner, one_device_learner
from ulorl.learner.update_result import UpdateSums
from ulorl.learner.update_start import UpdateStart
from ulorl.types import Finish, Group, Problem, Sample, Scored, Segment, Status

V = 31
SIZES = {
    "vocab_size": V, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64, "tie_word_embeddings": True,
}  # fmt: skip
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**{**SIZES, "tie_word_embeddings": False})),
    "moe": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**SIZES, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2)
    ),
    "window": lambda: Qwen3ForCausalLM(  # a layer that sees the last 3 tokens, and one that sees all
        Qwen3Config(**SIZES, use_sliding_window=True, sliding_window=3, max_window_layers=1)
    ),
}


def tiny_model(kind: str = "qwen3") -> PreTrainedModel:
    torch.manual_seed(0)
    return MODELS[kind]().eval()


def learner(
    optim: dict[str, object] | None = None, objective: dict[str, object] | None = None, **kwargs: object
) -> PolicyLearner:
    model = tiny_model(str(kwargs.pop("model", "qwen3")))
    spec = LearnerSpec(
        optim=OptimConfig(**{"lr": 1e-2, **(optim or {})}),
        objective=ObjectiveConfig(**(objective or {})),
        temperature=kwargs.pop("temperature", 0.85),
        max_tokens=16,
        pad_id=0,
        seed=kwargs.pop("seed", 0),
        cpu_kernels=kwargs.pop("cpu_kernels", True),
        token_samples=kwargs.pop("token_samples", 0),
    )
    return one_device_learner(model, spec, **kwargs)


def sample(id: int, lengths: list[int], status: Status = Status.COMPLETE) -> Sample:
    """Segments of these lengths, one version each, with made-up tokens and log-probs."""
    rng = np.random.default_rng(id)
    segments = tuple(
        Segment(
            id,
            rng.integers(1, V, n).astype(np.int32),
            (-rng.random(n) * 5).astype(np.float32),
            np.full(n, version, np.int32),
            Finish.LENGTH,
        )
        for version, n in enumerate(lengths)
    )
    return Sample(id, id // 4, rng.integers(1, V, 3 + id % 3).astype(np.int32), segments, status)


def group(id: int, rewards: list[float], lengths: list[list[int]]) -> Group:
    members = [Scored(sample(4 * id + i, n), r, "") for i, (r, n) in enumerate(zip(rewards, lengths, strict=True))]
    return Group(id, Problem(str(id), "?"), tuple(members))


GROUPS = [
    group(0, [1, 0, 0, 1], [[3], [5, 2], [1], [4, 4, 4]]),
    group(1, [0, 0, 0, 1], [[2], [6], [4, 1], [7]]),
]


def weights(of: PolicyLearner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in of.publish().tensors}


def gradient(of: PolicyLearner) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of GROUPS as one mini-batch, and its gradient before clipping."""
    experience, _ = prepare(GROUPS, of.spec.objective, of.spec.max_tokens)
    sums = UpdateSums()
    assert isinstance(of._gradient(experience, UpdateStart(), sums), float)
    return sums.loss, {name: p.grad.clone() for name, p in of.model.named_parameters()}
