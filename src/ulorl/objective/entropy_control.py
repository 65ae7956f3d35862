"""Controls of the policy's entropy, beside the MPT masks (mpt.py): Clip-Cov and KL-Cov, top-entropy tokens, and an
entropy bonus with an adaptive coefficient. Shapes: N tokens of a whole update.

Covariances and thresholds are over all tokens of an update, under the weights at its start: a micro-batch or a rank
that computed its own would choose other tokens. Every result is a constant to the gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def covariances(logprobs_N: Tensor, advantages_N: Tensor) -> Tensor:
    """Return each token's part of the covariance of log-prob and advantage: (log p - mean log p) * (A - mean A).

    Under a softmax policy, the entropy falls with the covariance of log-prob and advantage (Cui et al. 2025, arXiv
    2505.22617): a few tokens with a high covariance carry most of the fall.

    Args:
        logprobs_N: log-probs [N].
        advantages_N: advantage of each token's sample [N].

    Returns:
        float64 [N].
    """
    logprobs_N, advantages_N = logprobs_N.detach().double(), advantages_N.double()
    return (logprobs_N - logprobs_N.mean()) * (advantages_N - advantages_N.mean())


def clip_cov_tokens(cov_N: Tensor, draws_N: Tensor, *, share: float, low: float, high: float) -> Tensor:
    """Return the tokens that Clip-Cov leaves out of the gradient (arXiv 2505.22617).

    They are drawn from the tokens whose covariance is above `low` and below `high`: `share` of all N tokens, rounded
    down, but at least one. Here the draws are numbers that the caller gives, so that no split of the tokens changes
    them.

    Args:
        cov_N: what `covariances` returned [N].
        draws_N: a random number for each token [N]; the candidates with the lowest are chosen.
        share: of all tokens, in (0, 1].
        low, high: bounds of the covariance.

    Returns:
        bool [N].
    """
    candidate_N = (cov_N > low) & (cov_N < high)
    number = min(max(int(share * len(cov_N)), 1), int(candidate_N.sum()))
    return candidate_N & _highest(torch.where(candidate_N, -draws_N, -math.inf), number)


def kl_cov_tokens(cov_N: Tensor, draws_N: Tensor, share: float) -> Tensor:
    """Return the tokens that KL-Cov penalises: `share` of all N tokens, rounded down, but at least one, with the
    highest covariance (arXiv 2505.22617).

    Ties are common: log-probs of certain tokens are 0 in float32, and those of the samples with the highest advantage
    are all the highest. Among equal ones those with the lowest draws are chosen.

    Args:
        cov_N: what `covariances` returned [N].
        draws_N: a random number for each token [N].
        share: of all tokens, in (0, 1].

    Returns:
        bool [N].
    """
    by_draw_N = draws_N.argsort()
    order_N = by_draw_N[cov_N[by_draw_N].argsort(descending=True, stable=True)]
    chosen_N = torch.zeros_like(cov_N, dtype=torch.bool)
    chosen_N[order_N[: max(int(share * len(cov_N)), 1)]] = True
    return chosen_N


def kl_cov_penalty_sum(logprobs_N: Tensor, old_N: Tensor, penalised_N: Tensor) -> Tensor:
    """Return the sum of |log pi_theta - log pi_old| over the penalised tokens (float64, 0-dim), with gradient.

    The estimate of KL(pi_old || pi_theta) is that of the authors' code (verl, `compute_policy_loss_kl_cov`). Its
    gradient is 0 where the two are equal.

    Args:
        logprobs_N: log-probs under the weights being trained [N], with gradient.
        old_N: log-probs under the old policy [N], constants.
        penalised_N: bool [N].
    """
    zero = torch.zeros((), dtype=logprobs_N.dtype, device=logprobs_N.device)
    return torch.where(penalised_N, logprobs_N - old_N, zero).abs().sum(dtype=torch.float64)


def top_entropy_tokens(entropy_N: Tensor, share: float) -> Tensor:
    """Return the `share` of tokens with the highest entropy, rounded up, the only ones that are trained (Wang et al.
    2025, arXiv 2506.01939: 0.2). Tokens as high as the last of them are chosen too. The others stay in the denominator
    of the loss.

    Args:
        entropy_N: entropy over the vocabulary at each token [N].
        share: of all tokens, in (0, 1].

    Returns:
        bool [N].
    """
    return _highest(entropy_N.detach(), math.ceil(share * len(entropy_N)))


def adapted_coefficient(coefficient: float, entropy: float, *, target: float, step: float, highest: float) -> float:
    """Return the next coefficient c of the entropy bonus (Skywork-OR1, arXiv 2505.22312): c + step while
    the entropy is below the target, else c - step; within 0 to `highest`.

    The bonus itself is c while the entropy is at most the target, else 0: see `entropy_bonus`.

    Args:
        coefficient: the present c.
        entropy: mean token entropy in nats, of the update at its start.
        target: in nats.
        step: by how much c changes in an update.
        highest: the upper bound of c.
    """
    changed = coefficient + step if entropy < target else coefficient - step
    return min(max(changed, 0.0), highest)


def entropy_bonus(coefficient: float, entropy: float, target: float) -> float:
    """Return the factor of the mean token entropy in the objective: c * I(entropy <= target) (Skywork-OR1)."""
    return coefficient if entropy <= target else 0.0


def _highest(values_N: Tensor, number: int) -> Tensor:
    """Which values are at least the `number`-th highest; none for 0."""
    if not number:
        return torch.zeros_like(values_N, dtype=torch.bool)
    return values_N >= values_N.topk(number).values[-1]
