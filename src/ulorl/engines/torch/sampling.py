"""Draws tokens, with their log-probs, from logits: temperature, top-k, top-p, and one uniform number for each draw.

A row's draw depends only on its own logits and its own uniform number. The cumulative distribution is summed in
integers (multiples of 2^-52), so it is exact and monotone on any device and in any order of summation, and a token of
probability zero is never drawn.

Shapes: B rows, R rows that are truncated, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

_UNIT = 2.0**52  # probability 1 in the integer distribution, still exact in float64
_CHUNK = 2**24  # logits of one pass: bounds the float64 and int64 temporaries to about 128 MB each


def draw(
    logits_BV: torch.Tensor,
    uniforms: NDArray[np.float64],
    temperature: NDArray[np.float64],
    top_p: NDArray[np.float64],
    top_k: NDArray[np.int64],
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Draw one token for each row, [B], and return it with its log-prob, [B].

    Log-probs are those of softmax(logits / temperature) over the full vocabulary. `uniforms` in [0, 1) decide the
    draws, [B]; `temperature` 0 is greedy, with the log-prob of temperature 1; `top_p` 1 and `top_k` 0 are off. As is
    usual, top-k truncates first and top-p then truncates the rest. The results reach the host in one transfer.
    """
    rows = max(1, _CHUNK // logits_BV.shape[1])
    parts = []
    for start in range(0, len(logits_BV), rows):
        part = slice(start, start + rows)
        parts.append(_draw(logits_BV[part], uniforms[part], temperature[part], top_p[part], top_k[part]))
    tokens, logprobs = (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).cpu().numpy()
    return tokens.astype(np.int32), logprobs.astype(np.float32)


def _draw(
    logits_BV: torch.Tensor,
    uniforms: NDArray[np.float64],
    temperature: NDArray[np.float64],
    top_p: NDArray[np.float64],
    top_k: NDArray[np.int64],
) -> torch.Tensor:
    """Tokens and log-probs as the two rows of one float64 tensor, [2, B]."""
    device = logits_BV.device
    greedy = temperature == 0
    logits_BV = logits_BV.float()
    if not (temperature == 1).all():
        divisor = torch.from_numpy(np.where(greedy, 1.0, temperature).astype(np.float32)).to(device)
        logits_BV = logits_BV / divisor[:, None]
    logprobs_BV = torch.log_softmax(logits_BV, dim=-1)
    tokens_B1 = logprobs_BV.argmax(dim=-1, keepdim=True) if greedy.any() else None
    if not greedy.all():
        probs_BV = truncate(logprobs_BV.exp(), top_p, top_k)
        drawn_B1 = _inverse_cdf(probs_BV, torch.from_numpy(uniforms[:, None]).to(device))
        greedy_B1 = torch.from_numpy(greedy[:, None]).to(device)
        tokens_B1 = drawn_B1 if tokens_B1 is None else torch.where(greedy_B1, tokens_B1, drawn_B1)
    assert tokens_B1 is not None
    chosen_B1 = logprobs_BV.gather(-1, tokens_B1)
    return torch.cat([tokens_B1.double(), chosen_B1.double()], dim=1).T


def truncate(probs_BV: torch.Tensor, top_p: NDArray[np.float64], top_k: NDArray[np.int64]) -> torch.Tensor:
    """Set to zero what top-k and top-p leave out, [B, V], without renormalising; rows with both off stay unchanged.

    Top-p keeps the smallest set of most probable tokens whose share of what top-k kept is at least `top_p`.
    """
    if not ((top_p < 1).any() or (top_k > 0).any()):
        return probs_BV
    rows = np.flatnonzero((top_p < 1) | (top_k > 0))
    device, vocabulary = probs_BV.device, probs_BV.shape[1]
    index = torch.from_numpy(rows).to(device)
    sorted_RV, order_RV = probs_BV[index].double().sort(dim=-1, descending=True, stable=True)
    k = torch.from_numpy(np.where(top_k > 0, top_k, vocabulary)[rows]).to(device)
    sorted_RV = sorted_RV.masked_fill(torch.arange(vocabulary, device=device) >= k[:, None], 0.0)
    before_RV = sorted_RV.cumsum(dim=-1) - sorted_RV  # probability of the tokens ahead of this one
    limit = torch.from_numpy(top_p[rows]).to(device) * sorted_RV.sum(dim=-1)
    dropped_RV = (before_RV >= limit[:, None]) & torch.from_numpy(top_p[rows] < 1).to(device)[:, None]
    kept_RV = torch.zeros_like(sorted_RV).scatter_(-1, order_RV, sorted_RV.masked_fill(dropped_RV, 0.0))
    return probs_BV.index_copy(0, index, kept_RV.to(probs_BV.dtype))


def _inverse_cdf(probs_BV: torch.Tensor, uniforms_B1: torch.Tensor) -> torch.Tensor:
    """The token in whose share of the cumulative distribution the uniform number lies, [B, 1]."""
    cdf_BV = (probs_BV.double() * _UNIT).long().cumsum(dim=-1)
    # floor(u * total) < total for every float64 u < 1: the first entry above the target exists, its probability is > 0
    target_B1 = (uniforms_B1 * cdf_BV[:, -1:]).long()
    return torch.searchsorted(cdf_BV, target_B1, right=True)
