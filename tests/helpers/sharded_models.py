"""A small model sharded with FSDP2 over the processes of `run_processes`, as the sharded learner does it."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from ulorl.models.meta_loading import load_into_shards, make_empty_model
from ulorl.models.model_source import ModelSource


class Policy(nn.Module):
    """The root of the sharded units."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        return logits


def load_sharded_model(source: ModelSource, dtype: torch.dtype = torch.float32) -> Policy:
    """Load a model into shards, or whole when there is no process group."""
    policy = Policy(make_empty_model(source, dtype))
    if dist.is_initialized():
        model, mesh = policy.model, init_device_mesh("cpu", (dist.get_world_size(),))
        units = [*model.model.layers]
        if not model.config.tie_word_embeddings:
            units += [model.model.embed_tokens, [model.lm_head, model.model.norm]]
        for unit in [*units, policy]:
            fully_shard(unit, mesh=mesh)
    policy.to_empty(device="cpu")
    load_into_shards(policy.model, source)
    return policy


def full(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor that may be sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
