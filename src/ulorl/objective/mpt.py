"""Well-mastered positive tokens (MPTs, eq. 9) and their dynamic masking (DMMPTs, eq. 10; section 3.2).

Every result is a constant to the gradient. Shapes: N tokens of a batch, B samples.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Mask = Literal["off", "all", "dynamic"]


def mpt_tokens(logprobs_N: Tensor, correct_N: Tensor, tau: float) -> Tensor:
    """Return which tokens are MPTs (eq. 9): tokens of right samples whose probability is at least tau.

    Args:
        logprobs_N: log-probs of the tokens [N] under the forward pass that trains.
        correct_N: whether the token's sample has reward 1, bool [N].
        tau: probability in (0, 1].

    Returns:
        bool [N].
    """
    # Compared as log-probs: exp() could round a probability of exactly tau to just below it.
    return correct_N & (logprobs_N.detach() >= math.log(tau))


def sample_mean(values_N: Tensor, sample_N: Tensor, B: int) -> Tensor:
    """Return the mean of a per-token value over each sample's tokens: H_i of eq. 10 when given entropies.

    Args:
        values_N: one value a token [N].
        sample_N: the sample each token belongs to, int64 [N] in 0..B-1.
        B: samples in the batch.

    Returns:
        means [B], float64, detached; 0 for a sample without tokens.
    """
    # float64: a plain float32 sum over 131,072 tokens loses digits that decide H_i < sigma.
    sums_B = torch.zeros(B, dtype=torch.float64, device=values_N.device)
    sums_B.index_add_(0, sample_N, values_N.detach().double())
    return sums_B / torch.bincount(sample_N, minlength=B).clamp(min=1)


def masked_tokens(
    logprobs_N: Tensor,
    entropy_N: Tensor,
    sample_N: Tensor,
    correct_B: Tensor,
    *,
    mask: Mask,
    tau: float,
    sigma: float,
    batch_entropy: float | None = None,
) -> Tensor:
    """Return I_msk of eq. 10: the tokens left out of the loss. They stay in its denominator.

    Args:
        logprobs_N: log-probs of the tokens [N] under the forward pass that trains.
        entropy_N: entropy over the vocabulary at each token, in nats [N], same pass; every output token of a sample
            must be there, for H_i is their mean.
        sample_N: the sample each token belongs to, int64 [N] in 0..B-1.
        correct_B: whether each sample has reward 1, bool [B].
        mask: `off` no token; `all` every MPT; `dynamic` MPTs while the entropy is below sigma (DMMPTs).
        tau: an MPT has at least this probability.
        sigma: target entropy in nats.
        batch_entropy: mean entropy in nats over all tokens of the update, which is compared with sigma in place of
            each sample's H_i; None: H_i (eq. 10). A number, because the tokens here may be one micro-batch of many.

    Returns:
        bool [N], True where the token is left out.

    Raises:
        ValueError: unknown mask.
    """
    if mask == "off":
        return torch.zeros_like(logprobs_N, dtype=torch.bool)
    mpt_N = mpt_tokens(logprobs_N, correct_B[sample_N], tau)
    if mask == "all":
        return mpt_N
    if mask != "dynamic":
        raise ValueError(f"the mask is off, all or dynamic, found {mask!r}")
    if batch_entropy is None:
        return mpt_N & (sample_mean(entropy_N, sample_N, len(correct_B)) < sigma)[sample_N]
    return mpt_N if batch_entropy < sigma else torch.zeros_like(mpt_N)
