"""The files of a learner in a checkpoint: weights and moments, whole or sharded.

model/                  a transformers folder; of a sharded learner without the weights
adapters.safetensors    with LoRA only; model/ is then without them, as it was loaded
optimizer.safetensors   AdamW's moments by parameter name
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from ulorl.learner.optimizer import Optimizer
from ulorl.models.lora import exact_state, save_exact

MOMENTS = "optimizer.safetensors"
Tensors = dict[str, Tensor]


def writer(model: PreTrainedModel, optimizer: Optimizer, *, copy: bool) -> Callable[[Path], None]:
    """Return a function that writes the weights and moments of now into a folder.

    copy: copy them into the memory of the CPU, so that an update may follow before they are written.
    """
    copied: Callable[[Tensors], Tensors] = _copies if copy else dict
    weights, adapters = map(copied, exact_state(model))
    moments = copied(optimizer.state())

    def write(folder: Path) -> None:
        save_exact(model, folder, (weights, adapters))
        save_file(moments, folder / MOMENTS)

    return write


def load_moments(optimizer: Optimizer, folder: Path) -> None:
    """Load AdamW's moments and the count of updates from a checkpoint."""
    optimizer.load_state(load_file(folder / MOMENTS))


def _copies(tensors: Tensors) -> Tensors:
    """Copy tensors into the memory of the CPU. Copies of tensors that share memory, such as a tied head, share it too:
    writing them depends on it."""
    made: dict[tuple[object, ...], Tensor] = {}
    for tensor in tensors.values():
        if _place(tensor) not in made:
            made[_place(tensor)] = torch.empty_like(tensor, device="cpu").copy_(tensor)
    return {name: made[_place(tensor)] for name, tensor in tensors.items()}


def _place(tensor: Tensor) -> tuple[object, ...]:
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
