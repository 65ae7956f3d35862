"""Chooses the attention kernel that the model runs.

transformers finds the samples of a packed row by their position ids. It passes their borders (cu_seqlens) to
flash-attention, whose memory grows with tokens, and makes a block-diagonal mask for the other kernels, whose memory
grows with the square of tokens (`PACKED_MASK_TOKENS`). A row with a single sample needs no mask.
"""

from __future__ import annotations

import importlib.util

import torch
from transformers import PreTrainedModel

from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError, first_line

FLASH = "flash_attention_2"


def require_attention(kind: str, device: torch.device | str) -> None:
    """Refuse a `model.attention` that cannot run on the device, without loading a model. Raises UserError."""
    if kind != FLASH:
        return
    if torch.device(device).type != "cuda":
        raise _error(f"{FLASH}: needs a CUDA device, found {device}; use sdpa", ErrorCode.DEVICE_UNAVAILABLE)
    if not any(importlib.util.find_spec(name) for name in ("flash_attn", "kernels")):
        problem = f"{FLASH}: neither flash-attn nor kernels is installed; pip install flash-attn"
        raise _error(problem, ErrorCode.EXTRA_MISSING)


def set_attention(model: PreTrainedModel, kind: str) -> None:
    """Let the model run one of transformers' attention kernels. Raises UserError when it cannot."""
    try:
        model.set_attn_implementation(kind)
    except (ValueError, ImportError) as error:
        problem = f"{kind}: {first_line(error)} (model.attention=eager runs every model)"
        raise _error(problem, ErrorCode.MODEL_UNSUPPORTED) from error


def _error(problem: str, code: ErrorCode) -> UserError:
    return UserError(f"model.attention={problem}", code=code, key="model.attention")
