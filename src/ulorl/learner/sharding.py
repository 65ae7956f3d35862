"""Shards a policy over the ranks of a learner with FSDP2 (`fully_shard`), by PyTorch's documented pattern."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers.modeling_layers import GradientCheckpointingLayer

from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.learner.policy import Policy

OLDEST_TORCH = (2, 13)  # 2.11 and 2.12 lose the cast of a layer's input when activations are recomputed


def require_sharding() -> None:
    """Raise UserError when this torch cannot shard a learner correctly."""
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    if (major, minor) < OLDEST_TORCH:
        raise UserError(
            f"a learner of several processes needs torch {'.'.join(map(str, OLDEST_TORCH))} or newer, found "
            f"{torch.__version__}; pip install -U torch, or train with backend.kind=local",
            code=ErrorCode.EXTRA_MISSING,
            key="backend.kind",
        )


def shard_policy(policy: Policy, mesh: DeviceMesh, *, autocast: bool) -> None:
    """Shard every parameter of a policy over the ranks of a one-dimensional mesh, in place.

    A decoder layer is gathered as a whole when it computes; so are the embedding, and the last norm with the head. A
    head that is tied to the embedding stays with it in the root, which is gathered for the whole pass. Gradients are
    sums over the ranks, in float32.

    autocast: gather and multiply in bfloat16; the sharded weights, and the sums of gradients, are float32.
    """
    settings = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16 if autocast else None, reduce_dtype=torch.float32),
    }
    for unit in _units(policy):
        fully_shard(unit, **settings)  # type: ignore[call-overload]
    fully_shard(policy, **settings)  # type: ignore[call-overload]
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            # FSDP2's default is the mean, and its way to the mean a factor that NCCL rounds to 0 in bfloat16.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _units(policy: Policy) -> Iterator[nn.Module | list[nn.Module]]:
    """Yield the modules, inside before outside, whose parameters are gathered together."""
    model = policy.model
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    nested = {inner for layer in layers for inner in layer.modules() if inner is not layer}
    yield from (layer for layer in layers if layer not in nested)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    norm = getattr(model.base_model, "norm", None)
    if head.weight is not embedding.weight:
        yield embedding
        if isinstance(norm, nn.Module):  # its forward pass gathers the weight of the head, which the policy reads
            yield [norm, head]
