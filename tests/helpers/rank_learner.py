"""Learners of several ranks on small saved models, for tests that compare them with a learner of one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from tiny_learner import GROUPS, V, group
from ulorl.config.model_config import ModelConfig
from ulorl.config.training_config import ObjectiveConfig, OptimConfig
from ulorl.learner.make_learner import LearnerBuild, make_learner, make_rank_learner
from ulorl.learner.policy_learner import LearnerSpec, PolicyLearner
from ulorl.learner.ranks import MeshRanks
from ulorl.models.model_source import ModelSource
from ulorl.types import Group

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
}  # fmt: skip


def small_model(kind: str) -> PreTrainedModel:
    """tied, untied, or moe (untied); the number of words is uneven, so shards have different sizes."""
    torch.manual_seed(0)
    if kind == "moe":
        experts = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
        return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **experts, tie_word_embeddings=False)).eval()
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, tie_word_embeddings=kind == "tied")).eval()


def save_models(folder: Path) -> None:
    for kind in ("tied", "untied", "moe"):
        small_model(kind).save_pretrained(folder / kind)


@dataclass(frozen=True)
class Case:
    """What is trained, and by how many ranks."""

    data: int = 1
    sequence: int = 1
    model: str = "tied"
    optim: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    groups: str = "two"
    steps: int = 3

    def build(self, folder: Path, checkpoint: Path | None = None, version: int = 0) -> LearnerBuild:
        optim = {"lr": 1e-2, "microbatch_tokens": 24, "sequence_parallel": self.sequence, **self.optim}
        mpt = {"tau": 0.02, "sigma": 3.0, **self.objective.get("mpt", {})}
        spec = LearnerSpec(
            OptimConfig(**optim),
            ObjectiveConfig(**{**self.objective, "mpt": mpt}),
            temperature=0.85,
            max_tokens=16,
            pad_id=0,
        )
        source = ModelSource(str(checkpoint / "model") if checkpoint else str(folder / self.model))
        return LearnerBuild(spec, ModelConfig(attention="sdpa"), source, checkpoint, version)


def ragged(groups: int) -> list[Group]:
    """Groups whose samples have lengths from 1 to 14 tokens."""
    return [
        group(g, [1, 0, 0, 1], [[1 + (5 * g + m) % 7, 1 + (3 * g + 5 * m) % 7] for m in range(4)])
        for g in range(groups)
    ]


BATCHES: dict[str, Sequence[Group]] = {
    "two": GROUPS,
    "many": ragged(5),
    "one sample each": [group(7, [1, 0], [[3], [9]])],
    "none": [group(8, [1, 1, 1, 1], [[3], [9], [1], [2]])],
}


def train(learner: PolicyLearner, case: Case) -> list[dict[str, Any]]:
    """The means and counts of each step."""
    found = []
    for _ in range(case.steps):
        update = learner.update(BATCHES[case.groups])
        counts = (update.steps, update.samples, update.tokens, update.groups_dropped, len(update.skipped))
        found.append({**update.means, "counts": counts})
    return found


def whole_weights(learner: PolicyLearner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner.publish().tensors}


def one_process(case: Case, folder: Path) -> PolicyLearner:
    return make_learner(case.build(folder), CPU)


def of_ranks(case: Case, folder: Path, ranks: MeshRanks | None = None) -> PolicyLearner:
    return make_rank_learner(case.build(folder), CPU, ranks or MeshRanks("cpu", case.sequence))
