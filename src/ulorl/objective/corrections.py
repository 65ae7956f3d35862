"""Corrections for tokens that another policy drew than the old policy of the ratio: truncated weights, masks, and the
smallest ratio of a prefix. Every result is a constant to the gradient. Shapes: N tokens of a batch, B samples.

The engine drew the tokens, and its recorded log-probs differ from the learner's by kernels and dtype, and for tokens of
earlier segments by the updates since.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ulorl.objective.mpt import sample_mean

MaskLevel = Literal["off", "token", "sequence", "sequence_mean"]


def engine_weights(old_N: Tensor, recorded_N: Tensor, cap: float) -> Tensor:
    """Return the weights of truncated importance sampling, min(pi_old / pi_engine, cap) for each token [N].

    POIS uses the newest policy as the old one, as if it had drawn the tokens. The truncation (Ionides 2008) bounds the
    variance. Yao et al. 2025 ("Your efficient RL framework secretly brings you off-policy RL training") weight the
    mismatch of engine and learner like this; Fu et al. 2025 (AReaL, arXiv 2505.24298, the decoupled objective) the
    staleness.
    """
    return torch.exp(old_N - recorded_N).clamp(max=cap).detach()


def engine_kept(
    old_N: Tensor, recorded_N: Tensor, sample_N: Tensor, B: int, *, level: MaskLevel, low: float, high: float
) -> Tensor:
    """Return which tokens an engine mask keeps: those whose pi_old / pi_engine is within [low, high].

    - `token`: of the token itself. With low=0.5, high=5 and `engine_weights` capped at 5 this is IcePop (Zhao et al.
      2025, "Small leak can sink a great ship"): the weight k within the bounds, 0 outside.
    - `sequence`: the product over the sample's tokens, for all of them: masked importance sampling (MIS), TRL's
      `sequence_mask` and verl's `seq_sum_k1`. The product of many tokens leaves any bounds.
    - `sequence_mean`: the geometric mean over the sample's tokens, for all of them: verl's `seq_mean_k1`, which does
      not depend on the length.

    Args:
        old_N: log-probs under the old policy [N].
        recorded_N: log-probs recorded at generation [N].
        sample_N: the sample each token belongs to, int64 [N] in 0..B-1; every output token of a sample must be there.
        B: samples in the batch.
        level: what is compared with the bounds; `off` keeps every token.
        low, high: bounds of the ratio; a low of 0 is none.

    Returns:
        bool [N].

    Raises:
        ValueError: unknown level.
    """
    log_ratio_N = (old_N - recorded_N).detach()
    if level == "off":
        return torch.ones_like(log_ratio_N, dtype=torch.bool)
    if level == "token":
        compared_N = log_ratio_N
    elif level in ("sequence", "sequence_mean"):
        compared_B = sample_mean(log_ratio_N, sample_N, B)
        if level == "sequence":
            compared_B = compared_B * torch.bincount(sample_N, minlength=B)
        compared_N = compared_B[sample_N]
    else:
        raise ValueError(f"the level is off, token, sequence or sequence_mean, found {level!r}")
    lowest = math.log(low) if low else -math.inf
    return (compared_N >= lowest) & (compared_N <= math.log(high))


def smallest_prefix_ratio(log_ratio_N: Tensor, sample_N: Tensor) -> Tensor:
    """Return log min over j < t of r_j for each token t of its sample [N]; 0 for the first: MinPRO.

    The right weight of token t is the product of the ratios r_1 ... r_t of its prefix, which vanishes or explodes with
    the length. MinPRO (Lei et al. 2026, "A Step Back: Prefix Importance Ratio Stabilizes Policy Optimization", arXiv
    2601.22718) replaces the product over the tokens before t by the smallest ratio among them: r_t * min_{j<t} r_j
    takes the place of r_t. **Decided here**, because only the paper's abstract could be read: the minimum is a constant
    to the gradient, and clipping applies to the product.

    Args:
        log_ratio_N: log pi_theta - log pi_old of the tokens [N].
        sample_N: the sample each token belongs to, int64 [N]; the tokens of a sample follow each other in order.
    """
    lengths = torch.unique_consecutive(sample_N, return_counts=True)[1].tolist()
    parts = torch.split(log_ratio_N.detach(), lengths)
    smallest = [torch.cat([part.new_zeros(1), part.cummin(0).values[:-1]]) for part in parts]
    return torch.cat(smallest) if smallest else log_ratio_N.detach()
