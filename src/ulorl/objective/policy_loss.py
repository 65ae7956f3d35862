"""Policy losses as sums over tokens: PPO's clipped one (eqs. 7 and 10), CISPO's and GSPO's.

Shapes: N tokens of a batch, B samples.

Each returns a sum, because a micro-batch knows only its own tokens: the caller divides by a number of the whole update,
so that gradient accumulation equals one big batch. A token that is not kept adds exactly zero to loss and gradient, for
any log-probs (also -inf and nan).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ulorl.objective.mpt import sample_mean

Loss = Literal["ppo", "cispo", "gspo"]


@dataclass(frozen=True)
class LossSums:
    """Detached numbers of one call: sums over its kept tokens, 0-dim, which can be added over micro-batches; and what
    they are sums of, for each token."""

    ratio: Tensor  # of importance ratios, float64
    clipped: Tensor  # tokens whose ratio is clipped, int64
    tokens: Tensor  # kept tokens, int64
    ratio_N: Tensor  # importance ratios [N], 0 where a token is not kept
    clipped_N: Tensor  # bool [N]

    @classmethod
    def of(cls, ratio_N: Tensor, clipped_N: Tensor, kept_N: Tensor) -> LossSums:
        """Sum up ratios and clipped tokens, both 0 where a token is not kept."""
        return cls(ratio_N.sum(dtype=torch.float64), clipped_N.sum(), kept_N.sum(), ratio_N, clipped_N)


def clipped_objective_sum(
    logprobs_N: Tensor,
    old_N: Tensor,
    advantages_N: Tensor,
    kept_N: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> tuple[Tensor, LossSums]:
    """Return the negated numerator of eq. 10: -sum of (1 - I_msk) * min(r*A, clip(r, 1-low, 1+high)*A).

    The caller divides by the number of **all** tokens of the update, masked ones included.

    A token counts as clipped when min() takes the clipped branch and it differs from the other: A > 0 and
    r > 1 + clip_high, or A < 0 and r < 1 - clip_low. Such a token adds to the loss and not to the gradient.

    Args:
        logprobs_N: log-probs under the weights being trained [N], with gradient.
        old_N: log-probs under the old policy [N], constants.
        advantages_N: advantage of each token's sample [N].
        kept_N: bool [N], False where a mask leaves the token out (MPTs, tokens that the engine mask rejects). Samples
            that are not trained at all, such as truncated ones with `overlong=filter`, are not among the N tokens.
        clip_low: epsilon below 1.
        clip_high: epsilon above 1.

    Returns:
        the loss sum (float64, 0-dim, to minimise) and the sums to report.
    """
    zero = torch.zeros((), dtype=logprobs_N.dtype, device=logprobs_N.device)
    # Left-out tokens are replaced before exp(): zero times an infinite ratio's gradient would be nan.
    log_ratio_N = torch.where(kept_N, logprobs_N - old_N, zero)
    advantages_N = torch.where(kept_N, advantages_N, zero)
    ratio_N = log_ratio_N.detach().exp()
    too_high_N = (advantages_N > 0) & (ratio_N > 1 + clip_high)
    too_low_N = (advantages_N < 0) & (ratio_N < 1 - clip_low)
    clipped_N = too_high_N | too_low_N

    # The same for clipped ones: theirs is a constant bound, so no overflowing ratio meets a zero gradient either.
    surrogate_N = torch.where(clipped_N, zero, log_ratio_N).exp()
    surrogate_N = surrogate_N.masked_fill(too_high_N, 1 + clip_high).masked_fill(too_low_N, 1 - clip_low)
    loss = -(surrogate_N * advantages_N).sum(dtype=torch.float64)
    return loss, LossSums.of(torch.where(kept_N, ratio_N, zero), clipped_N, kept_N)


def cispo_objective_sum(
    logprobs_N: Tensor,
    old_N: Tensor,
    advantages_N: Tensor,
    kept_N: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> tuple[Tensor, LossSums]:
    """Return CISPO's loss (MiniMax-M1, arXiv 2506.13585, eqs. 4 and 5): -sum of sg(clip(r, 1-low, 1+high)) * A * log p.

    sg is stop-gradient: the clipped ratio weights the gradient of log p, so that no token loses its gradient by
    clipping. A token counts as clipped when its ratio is outside the bounds, whatever the sign of its advantage.
    MiniMax-M1 has no lower bound: clip_low=1. The caller divides by the number of all tokens of the update.

    Args and returns: as `clipped_objective_sum`.
    """
    zero = torch.zeros((), dtype=logprobs_N.dtype, device=logprobs_N.device)
    ratio_N = torch.where(kept_N, logprobs_N - old_N, zero).detach().exp()
    bounded_N = ratio_N.clamp(1 - clip_low, 1 + clip_high)
    terms_N = bounded_N * torch.where(kept_N, advantages_N, zero) * torch.where(kept_N, logprobs_N, zero)
    sums = LossSums.of(torch.where(kept_N, ratio_N, zero), bounded_N != ratio_N, kept_N)
    return -terms_N.sum(dtype=torch.float64), sums


def gspo_objective_sum(
    logprobs_N: Tensor,
    old_N: Tensor,
    advantages_N: Tensor,
    kept_N: Tensor,
    sample_N: Tensor,
    B: int,
    *,
    clip_low: float,
    clip_high: float,
) -> tuple[Tensor, LossSums]:
    """Return GSPO's loss (arXiv 2507.18071): -sum over samples of min(s*A, clip(s, 1-low, 1+high)*A).

    s_i = (pi_theta(o_i) / pi_old(o_i))^(1/|o_i|), the geometric mean of the sample's token ratios. It is written as the
    mean over a sample's tokens of min(s_it*A, clip(s_it)*A) with s_it = sg(s_i) * p_t / sg(p_t) (GSPO-token, section
    4.3), which has the same value and the same gradient, and lets single tokens be left out or weighted. All tokens
    count in s_i and in |o_i|, those left out too, so their log-probs must be finite. The caller divides by the number
    of samples of the update. The paper's bounds are much narrower than PPO's: clip_low=3e-4, clip_high=4e-4.

    Args:
        logprobs_N, old_N, advantages_N, kept_N, clip_low, clip_high: as in `clipped_objective_sum`.
        sample_N: the sample each token belongs to, int64 [N] in 0..B-1; every output token of a sample must be there.
        B: samples in the batch.

    Returns:
        the loss sum (float64, 0-dim, to minimise) and the sums to report; the ratio of a token is that of its sample.
    """
    sequence_B = sample_mean(logprobs_N - old_N, sample_N, B)
    as_if_old_N = logprobs_N.detach() - sequence_B.to(logprobs_N.dtype)[sample_N]
    length_N = torch.bincount(sample_N, minlength=B)[sample_N]
    return clipped_objective_sum(
        logprobs_N, as_if_old_N, advantages_N / length_N, kept_N, clip_low=clip_low, clip_high=clip_high
    )
