"""Which attention kernel the model runs, and the proof that packed samples do not see each other.

transformers finds the samples of a packed row by their position ids: it hands their borders (cu_seqlens) to
flash-attention, whose memory grows with tokens, and makes a block-diagonal mask for the others, whose memory grows
with the square (`config.PACKED_MASK_TOKENS`). A row with a single sample needs no mask anywhere.
"""

from __future__ import annotations

import importlib.util

import torch
from transformers import PreTrainedModel

from ulorl.errors import UserError

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
