"""Makes the learner of one process, from values that can be sent to it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import PreTrainedModel

from ulorl.config.model_config import ModelConfig
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.learner import learner_files
from ulorl.learner.model_checks import packed_samples_leak, packing_error
from ulorl.learner.policy import Policy
from ulorl.learner.policy_learner import LearnerSpec, PolicyLearner, one_device_learner
from ulorl.learner.ranks import ONE_RANK, MeshRanks, Ranks
from ulorl.learner.sharding import shard_policy
from ulorl.learner.ulysses import SequenceShards
from ulorl.models.attention import set_attention
from ulorl.models.cpu.linear_products import use_onednn
from ulorl.models.lora import add_lora
from ulorl.models.meta_loading import load_into_shards, make_empty_model
from ulorl.models.model_loading import load_model, recompute_activations
from ulorl.models.model_source import ModelSource


@dataclass(frozen=True)
class LearnerBuild:
    """Everything that a learner is made from, in any process.

    spec: how it trains. model: the settings of the model. source: the folder or hub name of the weights, or of a
    checkpoint's model. checkpoint: its folder; None in a new run. version, skipped_in_row: those of the checkpoint.
    """

    spec: LearnerSpec
    model: ModelConfig
    source: ModelSource
    checkpoint: Path | None = None
    version: int = 0
    skipped_in_row: int = 0

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        dtype: torch.dtype = getattr(torch, self.model.dtype)
        return dtype


def make_learner(build: LearnerBuild, device: torch.device) -> PolicyLearner:
    """Make a learner that trains alone. Raises UserError when the model cannot be loaded or trained."""
    learner = one_device_learner(
        _model(build, device), build.spec, version=build.version, skipped_in_row=build.skipped_in_row
    )
    _check(learner.policy, build.spec.optim.layout, ONE_RANK)
    if build.checkpoint:
        with learner_files.reading(build.checkpoint):
            learner.load(build.checkpoint)
    return learner


def make_rank_learner(build: LearnerBuild, device: torch.device, ranks: MeshRanks) -> PolicyLearner:
    """Make this rank's part of a learner. All ranks of torch's default process group call it.

    Raises UserError on all of them when the model cannot be loaded or trained.
    """
    optim = build.spec.optim
    if build.model.lora.rank:
        raise UserError(
            f"model.lora.rank={build.model.lora.rank}: adapters train on one device only; use model.lora.rank=0, or a "
            "learner of one process",
            code=ErrorCode.MODEL_ADAPTERS,
            key="model.lora.rank",
        )
    model = make_empty_model(build.source, build.dtype)
    shards = None
    if ranks.sequence > 1:
        shards = SequenceShards(model, ranks.sequence_group, build.model.attention)
    else:
        set_attention(model, build.model.attention)
    if build.spec.cpu_kernels and device.type == "cpu":
        use_onednn(model)
    if optim.recompute:
        recompute_activations(model)
    # FSDP2 casts the gathered weights itself, so torch.autocast stays off.
    policy = Policy(
        model,
        build.spec.temperature,
        autocast=False,
        cpu_kernels=build.spec.cpu_kernels,
        shards=shards,
        entropy_gradient=build.spec.objective.entropy.kind == "bonus",
    )
    shard_policy(policy, ranks.shard_mesh, autocast=optim.autocast == "bfloat16")
    register_fsdp_forward_method(policy, "check_head")
    policy.to_empty(device=device)
    if build.checkpoint and learner_files.is_sharded(build.checkpoint):
        with learner_files.reading(build.checkpoint):
            learner_files.load_weights(model, build.checkpoint, build.source)
    else:
        load_into_shards(model, build.source)
    _check(policy, optim.layout, ranks)
    learner = PolicyLearner(policy, build.spec, ranks=ranks, version=build.version, skipped_in_row=build.skipped_in_row)
    if build.checkpoint:
        with learner_files.reading(build.checkpoint):
            learner.load(build.checkpoint)
    return learner


def rank_device(name: str) -> torch.device:
    """Return the device of this rank: what `model.device` names, with `auto` the GPU of its local rank."""
    if name == "auto" and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu" if name == "auto" else name)


def _model(build: LearnerBuild, device: torch.device) -> PreTrainedModel:
    """Load the model that trains, with its adapters and its attention kernel."""
    if build.checkpoint and learner_files.is_sharded(build.checkpoint):
        model = make_empty_model(build.source, build.dtype).to_empty(device=device)
        with learner_files.reading(build.checkpoint):
            learner_files.load_weights(model, build.checkpoint, build.source)
    else:
        model = load_model(build.source, dtype=build.dtype, device=device)
    if build.model.lora.rank:
        add_lora(model, build.model.lora, checkpoint=build.checkpoint)
    set_attention(model, build.model.attention)
    return model


def _check(policy: Policy, layout: str, ranks: Ranks) -> None:
    """Check what the learner assumes about a model. All ranks raise the same UserError, or none."""
    policy.check_head()
    policy.free_gathered()
    if layout == "packed" and ranks.any(packed_samples_leak(policy, policy.model))[0]:
        raise packing_error(policy.model)
