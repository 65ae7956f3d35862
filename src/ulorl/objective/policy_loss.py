"""The clipped token-level objective (eqs. 7 and 10), as a sum over tokens. Shapes: N tokens of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LossSums:
    """Detached sums over the kept tokens of one call, as 0-dim tensors; they can be added over micro-batches."""

    ratio: Tensor  # of importance ratios, float64
    clipped: Tensor  # tokens where the clipped branch is active, int64
    tokens: Tensor  # kept tokens, int64


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

    A sum, because a micro-batch knows only its own tokens: the caller divides by the number of **all** tokens of the
    update, masked ones included, so that gradient accumulation equals one big batch. A token that is not kept adds
    exactly zero to loss and gradient, for any log-probs (also -inf and nan).

    A token counts as clipped when min() takes the clipped branch and it differs from the other: A > 0 and
    r > 1 + clip_high, or A < 0 and r < 1 - clip_low. Such a token adds to the loss and not to the gradient.

    Args:
        logprobs_N: log-probs under the weights being trained [N], with gradient.
        old_N: log-probs under the old policy [N], constants.
        advantages_N: advantage of each token's sample [N].
        kept_N: bool [N], False where the token is left out (masked MPTs, filtered samples).
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
    sums = LossSums(
        ratio=torch.where(kept_N, ratio_N, zero).sum(dtype=torch.float64),
        clipped=clipped_N.sum(),
        tokens=kept_N.sum(),
    )
    return loss, sums
