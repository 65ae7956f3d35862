"""Heads of every kind, and their log-probs and entropies from whole logits, to compare tiled ones with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ulorl.models.head import Head

HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "softcap": {"softcap": 3.0},
    "scale": {"scale": 0.25},
    "all": {"bias": True, "softcap": 3.0, "scale": 1.7},
}


def make(
    N: int, H: int, V: int, dtype: torch.dtype = torch.float32, *, bias: bool = False, **settings: float
) -> tuple[Tensor, Head, Tensor]:
    rng = torch.Generator().manual_seed(N * 1_000_003 + H * 1009 + V)
    hidden = torch.randn(N, H, generator=rng, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(V, H, generator=rng, dtype=torch.float64).to(dtype).requires_grad_()
    bias_V = torch.randn(V, generator=rng, dtype=torch.float64).to(dtype).requires_grad_() if bias else None
    return hidden, Head(weight, bias_V, **settings), torch.randint(V, (N,), generator=rng)


def naive(hidden: Tensor, head: Head, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits = hidden @ head.weight_VH.T
    if head.bias_V is not None:
        logits = logits + head.bias_V
    logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    logprobs = torch.log_softmax(logits / temperature, dim=-1)
    return logprobs.gather(1, targets[:, None]).squeeze(1), -(logprobs.exp() * logprobs).sum(-1)


def leaves(hidden: Tensor, head: Head) -> list[Tensor]:
    return [hidden, head.weight_VH] + ([] if head.bias_V is None else [head.bias_V])
