"""The memory plan (`ulorl plan memory`) against the measured peak of a learner of two processes, for several models.

Each process makes updates of two micro-batches over gloo with random weights. The peak is that of the bytes of all
tensors, as torch's CPU allocator counts them; what Python and the libraries take is no part of it. It is the largest of
three updates and of both processes. The plan counts the copies that gloo makes, and the smaller tiles of logits, of a
learner on a CPU.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import numpy as np
import torch
import transformers

from ulorl.bench.machine_facts import facts
from ulorl.bench.measured_processes import run_measured
from ulorl.bench.tensor_bytes import count_tensor_bytes, peak_tensor_bytes
from ulorl.config.model_config import ModelConfig
from ulorl.config.training_config import ObjectiveConfig, OptimConfig
from ulorl.learner.make_learner import LearnerBuild, make_rank_learner
from ulorl.learner.policy_learner import LearnerSpec
from ulorl.learner.ranks import MeshRanks, process_group
from ulorl.models.model_source import ModelSource
from ulorl.planning.learner_memory import LearnerSetting, learner_memory
from ulorl.planning.model_sizes import read_sizes
from ulorl.types import Finish, Group, Problem, Sample, Scored, Segment, Status

PROMPT = 8  # tokens
RANKS = 2
LIMIT = 300  # seconds for one shape
_SIZES = {
    "vocab_size": 4096, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "head_dim": 32,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192,
}  # fmt: skip
_EXPERTS = {"moe_intermediate_size": 96, "num_experts": 16, "num_experts_per_tok": 4}
_WIDE = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 8}


@dataclass(frozen=True)
class Shape:
    """A model, and how two processes train it.

    tokens: of each micro-batch, prompts and outputs together. samples: those that share its row; `optim.layout` is
    "packed" if they are several. updates: the updates that are measured, after a first one.
    """

    name: str
    tokens: int
    sequence: int = 1
    autocast: bool = False
    recompute: bool = True
    samples: int = 1
    updates: int = 3
    kind: str = "Qwen3"
    sizes: dict[str, Any] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        """The tokens of each sample."""
        return self.tokens // self.samples

    @property
    def setting(self) -> LearnerSetting:
        """What the plan is made from."""
        return LearnerSetting(
            ranks=RANKS, sequence=self.sequence, dtype="float32", autocast=self.autocast, offload=False,
            recompute=self.recompute, longest=self.longest, outputs=self.longest - PROMPT,
            microbatch_tokens=self.tokens // self.sequence, cpu=True,
        )  # fmt: skip


SHAPES = (
    Shape("dense, tied head", 2048, sizes={"tie_word_embeddings": True}),
    Shape("dense, bfloat16, one sequence on both", 4096, sequence=2, autocast=True, sizes={"num_hidden_layers": 8}),
    Shape("mixture of experts", 2048, kind="Qwen3Moe", sizes=_EXPERTS),
    Shape("wide, short samples, activations kept", 512, recompute=False, sizes=_WIDE),
    Shape("four packed samples, bfloat16, one sequence on both", 4096, sequence=2, autocast=True, samples=4),
)


def run() -> dict[str, Any]:
    """Measure the peak of each shape and compare it with the plan: bytes, and the plan as a share of the peak."""
    return {
        "benchmark": "memory",
        **facts(),
        "model": f"Small models with a vocabulary of {_SIZES['vocab_size']:,}, {RANKS} processes",
        "results": [compare(shape) for shape in SHAPES],
    }


def compare(shape: Shape) -> dict[str, Any]:
    """Return the measured and the planned peak of one shape."""
    with tempfile.TemporaryDirectory() as folder:
        _save_model(shape, folder)
        planned = learner_memory(read_sizes(ModelSource(folder)), shape.setting)
        peaks = _measured(shape, folder)
    measured = max(map(max, peaks))
    return {
        "shape": shape.name,
        "tokens": shape.tokens,
        "measured_bytes": measured,
        "smallest_measured_bytes": min(map(min, peaks)),
        "planned_bytes": planned.peak,
        "planned_to_measured": round(planned.peak / measured, 3),
        "phase": planned.largest.name,
        "state_bytes": planned.state,
    }


def _save_model(shape: Shape, folder: str) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, f"{shape.kind}Config")(**{**_SIZES, "tie_word_embeddings": False, **shape.sizes})
    getattr(transformers, f"{shape.kind}ForCausalLM")(config).save_pretrained(folder)


def _measured(shape: Shape, folder: str) -> list[list[int]]:
    """Return the peak of each update of each process."""
    code = "from ulorl.bench.memory_bench import Shape, measure_rank; measure_rank(Shape(**{!r}), {}, {!r})"
    codes = [code.format(asdict(shape), rank, folder) for rank in range(RANKS)]
    return run_measured(codes, limit=LIMIT, what=shape.name)


def measure_rank(shape: Shape, rank: int, folder: str) -> None:
    """Train a shape as one of the processes, and print the peak of each update in bytes as JSON."""
    torch.set_num_threads(1)
    count_tensor_bytes()
    cpu, limit = torch.device("cpu"), timedelta(seconds=LIMIT)
    with process_group(cpu, rank=rank, world=RANKS, init_method=f"file://{folder}/store", timeout=limit):
        learner = make_rank_learner(_build(shape, folder), cpu, MeshRanks("cpu", shape.sequence))
        learner.update(_groups(shape, 0))  # makes the moments
        updates = [_groups(shape, seed) for seed in range(1, shape.updates + 1)]
        print(json.dumps([peak_tensor_bytes(partial(learner.update, groups)) for groups in updates]))


def _build(shape: Shape, folder: str) -> LearnerBuild:
    optim = OptimConfig(
        lr=1e-4, recompute=shape.recompute, microbatch_tokens=shape.setting.microbatch_tokens,
        autocast="bfloat16" if shape.autocast else "off", sequence_parallel=shape.sequence,
        layout="packed" if shape.samples > 1 else "padded",
    )  # fmt: skip
    objective = ObjectiveConfig(dynamic_sampling=False)
    spec = LearnerSpec(optim, objective, temperature=1.0, max_tokens=shape.longest, pad_id=0, cpu_kernels=False)
    return LearnerBuild(spec, ModelConfig(), ModelSource(folder))


def _groups(shape: Shape, seed: int) -> list[Group]:
    """Return samples for two micro-batches of each process."""
    random = np.random.default_rng(seed)
    length, words = shape.longest - PROMPT, _SIZES["vocab_size"]

    def scored(id: int) -> Scored:
        output = random.integers(0, words, length).astype(np.int32)
        segment = Segment(id, output, np.full(length, -8, np.float32), np.zeros(length, np.int32), Finish.EOS)
        prompt = random.integers(0, words, PROMPT).astype(np.int32)
        return Scored(Sample(id, 0, prompt, (segment,), Status.COMPLETE), float(id % 2), "")

    return [Group(0, Problem("0", "?"), tuple(scored(id) for id in range(2 * RANKS // shape.sequence * shape.samples)))]
