"""Which attention kernel the model runs, and the proof that packed samples do not see each other.

transformers finds the samples of a packed row by their position ids: it hands their borders (cu_seqlens) to
flash-attention, whose memory grows with tokens, and makes a block-diagonal mask for the others, whose memory grows
with the square (`config.PACKED_MASK_TOKENS`). A row with a single sample needs no mask anywhere.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ulorl.errors import UserError
from ulorl.learner.batching import Row, collate
from ulorl.learner.model import hidden_states

FLASH = "flash_attention_2"


def require_attention(kind: str, device: torch.device | str) -> None:
    """Raise UserError when `model.attention` cannot run on the device. Cheap: loads no model."""
    if kind != FLASH:
        return
    if torch.device(device).type != "cuda":
        raise UserError(f"model.attention={FLASH}: needs a CUDA device, found {device}; use sdpa")
    if not any(importlib.util.find_spec(name) for name in ("flash_attn", "kernels")):
        raise UserError(f"model.attention={FLASH}: neither flash-attn nor kernels is installed; pip install flash-attn")


def set_attention(model: PreTrainedModel, kind: str) -> None:
    """Let the model run this kernel of transformers. Raises UserError when it cannot."""
    try:
        model.set_attn_implementation(kind)
    except (ValueError, ImportError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"model.attention={kind}: {first} (model.attention=eager runs every model)") from error


def check_packing(model: PreTrainedModel, *, autocast: bool) -> None:
    """Two small samples in one packed row: the second one's hidden states must not depend on the first one's tokens.

    Exactly so, in any dtype: the gradient that flows from the one to the other is 0, or something connects them.

    Raises:
        UserError: the model carries something over from a sample to the next (a recurrent state, a convolution).
    """
    ids = (np.arange(1, 13, dtype=np.int32) * 7919) % model.get_input_embeddings().weight.shape[0]
    end = np.zeros(1, np.int32)
    rows = [Row(part, end, end.astype(np.float32), end) for part in (ids[:5], ids[5:])]
    batch = collate(rows, 0, model.device, "packed")
    embedded: list[Tensor] = []

    def keep(_module: object, _inputs: object, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    hook = model.get_input_embeddings().register_forward_hook(keep)
    try:
        with torch.enable_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=autocast):
            hidden_SH = hidden_states(model, batch.input_ids, None, batch.position_ids)[0]
    finally:
        hook.remove()
    second_SH = hidden_SH[len(rows[0]) :].float()
    uneven_H = torch.linspace(-1, 1, second_SH.shape[1], device=model.device)  # norms keep the plain sum of squares
    (grad_BSH,) = torch.autograd.grad((second_SH * uneven_H).sum(), embedded[0])
    if grad_BSH[0, : len(rows[0])].any():
        raise UserError(
            f"optim.layout=packed: {type(model).__name__} lets a packed sample see the one before it; "
            "use optim.layout=padded"
        )
