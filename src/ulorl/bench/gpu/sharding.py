"""The sharded learner (FSDP2) on a mesh of one rank, beside the learner of one device."""

from __future__ import annotations

import tempfile
from functools import partial
from typing import Any

import numpy as np
import torch

from ulorl.bench.gpu.case import Case, Figures, Meter, NotPossibleError, Setting, metered, require
from ulorl.bench.gpu.models import SHAPES, random_model
from ulorl.bench.learner_bench import long_group
from ulorl.config.model_config import ModelConfig
from ulorl.config.training_config import ObjectiveConfig, OptimConfig
from ulorl.errors import UserError
from ulorl.learner.make_learner import LearnerBuild, make_learner, make_rank_learner
from ulorl.learner.policy_learner import LearnerSpec, PolicyLearner
from ulorl.learner.ranks import MeshRanks, process_group
from ulorl.learner.sharding import require_sharding
from ulorl.models.model_source import ModelSource

UPDATES = 3


def cases(setting: Setting) -> list[Case]:
    """Return the cases: the same updates as one device, and the options of the recipes for a cluster."""
    return [
        Case("updates are those of one device, float32", partial(_parity, setting, {})),
        Case(
            "autocast, recompute", partial(_parity, setting, {"autocast": "bfloat16", "recompute": True}, exact=False)
        ),
        Case("moments on the host", partial(_parity, setting, {"offload": True, "recompute": True})),
    ]


def _parity(setting: Setting, optim: dict[str, Any], *, exact: bool = True) -> Figures:
    """Make the same updates with both learners, and compare the norm of the last gradient."""
    if not exact:
        try:
            require_sharding()
        except UserError as error:  # torch before 2.13 shards correctly without autocast only
            raise NotPossibleError(str(error)) from None
    name, length = ("small", 64) if setting.small else ("Qwen3-0.6B", 2048)
    with tempfile.TemporaryDirectory() as folder:
        random_model(name, dtype=torch.float32, device="cpu", positions=length).save_pretrained(f"{folder}/model")
        build = LearnerBuild(_spec(length, optim), ModelConfig(), ModelSource(f"{folder}/model"))
        device = torch.device("cuda", 0) if setting.on_gpu else torch.device("cpu")
        alone = _train(setting, make_learner(build, device), name, length)
        with process_group(device, rank=0, world=1, init_method=f"file://{folder}/store"):
            ranks = MeshRanks(device.type, 1)
            sharded = _train(setting, make_rank_learner(build, device, ranks), name, length)
    figures: Figures = {
        "model": name,
        "tokens": length,
        "grad_norm": [alone[0], sharded[0]],
        "seconds": [alone[1].seconds, sharded[1].seconds],
        "peak_bytes": [alone[1].peak_bytes, sharded[1].peak_bytes],
    }
    close = bool(np.isclose(sharded[0], alone[0], rtol=1e-3 if exact else 0.05))
    require(close, "the gradient's norm differs from that of one device", figures)
    return figures


def _spec(length: int, optim: dict[str, Any]) -> LearnerSpec:
    return LearnerSpec(
        optim=OptimConfig(**{"lr": 1e-4, "microbatch_tokens": length, **optim}),
        objective=ObjectiveConfig(dynamic_sampling=False),
        temperature=0.85,
        max_tokens=length,
        pad_id=0,
    )


def _train(setting: Setting, learner: PolicyLearner, name: str, length: int) -> tuple[float, Meter]:
    """Return the gradient's norm in the last update, and what that update took."""
    for _ in range(UPDATES):
        with metered(setting) as meter:
            update = learner.update([long_group(length, SHAPES[name].vocabulary)])
    return update.means["train/grad_norm"], meter
