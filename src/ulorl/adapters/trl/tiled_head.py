"""UloRL's log-probs and entropies in place of TRL's fused LM head.

TRL asks the model for log-probs with `model(..., labels=labels, fused_lm_head=True)`, so that wrappers of the model
(DDP, autocast, PEFT) see one forward pass. Only what answers this call is replaced.

Shapes: B samples, S sequence, N scored tokens, H hidden.
"""

from __future__ import annotations

from functools import wraps
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from trl.trainer.utils import FusedCausalLMOutput

from ulorl.learner.logprobs import token_logprobs
from ulorl.models.head import Head, head_of

IGNORED = -100  # label of a token that is not scored


def use_tiled_head(model: PreTrainedModel, temperature: float, *, float32: bool = False) -> None:
    """Let the model answer calls with `fused_lm_head=True` by `token_logprobs`, on the scored tokens only.

    It then returns log-probs with gradient and entropies in nats without, [B, S - 1] each, 0 where a label is
    `IGNORED`. Other calls go to the forward pass that the model had, which TRL patched. float32: whether the head
    multiplies in float32 under autocast too, TRL's `cast_lm_head_to_fp32`, for which TRL made its weight float32.
    """
    other_forward = model.forward

    @wraps(type(model).forward)  # `generate` compares its arguments with this signature
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, labels: Tensor | None = None, **kwargs: Any) -> Any:
        if not fused_lm_head or labels is None:
            return other_forward(*args, **({} if labels is None else {"labels": labels}), **kwargs)
        hidden_BSH = self.base_model(*args, **{**kwargs, "use_cache": False}).last_hidden_state
        hidden_BSH, labels_BS = hidden_BSH[:, :-1], labels[:, 1:].to(hidden_BSH.device)
        return FusedCausalLMOutput(**_per_token(hidden_BSH, head_of(self), labels_BS, temperature, float32=float32))

    model.forward = MethodType(forward, model)


def _per_token(
    hidden_BSH: Tensor, head: Head, labels_BS: Tensor, temperature: float, *, float32: bool
) -> dict[str, Tensor]:
    """Return log-probs and entropies [B, S] of the labels that the hidden states predict."""
    scored_BS = labels_BS != IGNORED
    hidden_NH = hidden_BSH[scored_BS].to(head.weight_VH.device)
    if float32:
        hidden_NH = hidden_NH.float()
    elif torch.is_autocast_enabled(hidden_NH.device.type):  # as the layers before: the last norm may give float32
        dtype = torch.get_autocast_dtype(hidden_NH.device.type)
        hidden_NH, head = hidden_NH.to(dtype), _cast(head, dtype)
    logprobs_N, entropy_N = token_logprobs(hidden_NH, head, labels_BS[scored_BS].to(hidden_NH.device), temperature)
    names = {"log_probs": logprobs_N, "entropy": entropy_N}
    scored_BS = scored_BS.to(hidden_NH.device)
    # masked_scatter keeps the graph where no token is scored, so that a backward pass gives zeros.
    return {name: x_N.new_zeros(scored_BS.shape).masked_scatter(scored_BS, x_N) for name, x_N in names.items()}


def _cast(head: Head, dtype: torch.dtype) -> Head:
    return Head(head.weight_VH.to(dtype), head.bias_V, head.softcap, head.scale)
