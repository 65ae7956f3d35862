"""Chooses the attention kernel that the model runs.

transformers finds the samples of a packed row by their position ids. It passes their borders (cu_seqlens) to
flash-attention, whose memory grows with tokens, and makes a block-diagonal mask for the other kernels, whose memory
grows with the square of tokens (`PACKED_MASK_TOKENS`). A row with a single sample needs no mask.

On a GPU, torch computes query heads that share keys and values with flash-attention, which refuses float32, or with its
math kernel, whose memory grows with the square of tokens. Its memory-efficient kernel takes float32, but only keys and
values of every query head: `repeated_sdpa` repeats them, as transformers does where there is a mask.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError, first_line

FLASH = "flash_attention_2"
REPEATED = "sdpa_repeated"  # the name of `repeated_sdpa` in transformers


class Overlay:
    """An object with some attributes replaced, and all others its own; the object itself stays as it is."""

    def __init__(self, base: object, **attributes: object) -> None:
        self.__dict__.update(attributes)
        self._base = base

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)


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
        model.set_attn_implementation(kernel_name(kind))
    except (ValueError, ImportError) as error:
        problem = f"{kind}: {first_line(error)} (model.attention=eager runs every model)"
        raise _error(problem, ErrorCode.MODEL_UNSUPPORTED) from error


def kernel_name(kind: str) -> str:
    """Return the name by which transformers finds the kernel for a `model.attention`."""
    return REPEATED if kind == "sdpa" and torch.cuda.is_available() else kind


def repeated_sdpa(
    module: torch.nn.Module,
    query_BqSD: Tensor,
    key_BkSD: Tensor,
    value_BkSD: Tensor,
    attention_mask: Tensor | None,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """Compute transformers' sdpa [B, S, q, D], in float32 on a GPU with keys and values for every query head."""
    groups = getattr(module, "num_key_value_groups", 1)
    called: Any = module
    if groups > 1 and _in_float32_on_gpu(query_BqSD):
        key_BkSD, value_BkSD = repeat_kv(key_BkSD, groups), repeat_kv(value_BkSD, groups)
        called = Overlay(module, num_key_value_groups=1)
    attended: tuple[Tensor, None] = sdpa_attention_forward(
        called, query_BqSD, key_BkSD, value_BkSD, attention_mask, **arguments
    )
    return attended


def _in_float32_on_gpu(query: Tensor) -> bool:
    """Return whether sdpa computes in float32 on a GPU; torch.autocast lets it compute in bfloat16."""
    return query.is_cuda and query.dtype == torch.float32 and not torch.is_autocast_enabled("cuda")


# A name of its own, so that other models keep transformers' kernels; with the masks of sdpa.
AttentionInterface.register(REPEATED, repeated_sdpa)
AttentionMaskInterface.register(REPEATED, sdpa_mask)


def _error(problem: str, code: ErrorCode) -> UserError:
    return UserError(f"model.attention={problem}", code=code, key="model.attention")
