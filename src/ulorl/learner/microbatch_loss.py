"""The objective of one micro-batch: its policy loss, what corrects and masks it, and what controls the entropy.

Shapes: B samples and N output tokens of the micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ulorl.config.entropy_config import ClipCovConfig, KlCovConfig, TopEntropyConfig
from ulorl.config.training_config import ObjectiveConfig
from ulorl.learner.batching import Batch
from ulorl.learner.experience import Experience
from ulorl.learner.update_start import UpdateStart
from ulorl.objective.corrections import engine_kept, engine_weights, smallest_prefix_ratio
from ulorl.objective.entropy_control import kl_cov_penalty_sum
from ulorl.objective.importance import old_logprobs
from ulorl.objective.mpt import masked_tokens, mpt_tokens
from ulorl.objective.policy_loss import LossSums, cispo_objective_sum, clipped_objective_sum, gspo_objective_sum


@dataclass(frozen=True, eq=False)
class MicrobatchLoss:
    """The loss of a micro-batch, and what is reported about its tokens, detached."""

    loss_sum: Tensor  # float64, 0-dim, with gradient
    seen: LossSums
    entropy_N: Tensor  # in nats
    mpt_N: Tensor  # bool
    kept_N: Tensor  # bool: in the policy loss
    masked_N: Tensor  # bool: MPTs that are left out
    rejected_N: Tensor | None  # bool: left out by the engine mask; None without it
    chosen_N: Tensor | None  # bool: chosen by the entropy control; None without one that chooses
    weights_N: Tensor | None  # of truncated importance sampling; None without it
    at_start_N: Tensor | None  # log-probs at the update's start; None where the objective does not need them


def microbatch_loss(
    objective: ObjectiveConfig,
    batch: Batch,
    experience: Sequence[Experience],
    start: UpdateStart,
    scored: tuple[Tensor, Tensor],
    *,
    mean_length: float,
    bonus: float = 0.0,
) -> MicrobatchLoss:
    """Return the loss of a micro-batch as a sum over its tokens (eq. 10).

    The caller divides by the number of tokens of the mini-batch. GSPO's sum over samples is multiplied by the mean
    length, so that this division gives the mean over samples.

    Args:
        objective: the settings.
        batch: the micro-batch.
        experience: its samples, in their order.
        start: their values at the update's start.
        scored: log-probs (with gradient) and entropies of its tokens [N] under the weights that train; the entropies
            with gradient if there is a bonus.
        mean_length: output tokens of a sample, mean over the mini-batch.
        bonus: the factor of the mean token entropy in the objective.
    """
    logprobs_N, entropy_N = scored
    device, B = logprobs_N.device, len(experience)
    correct_B = torch.tensor([e.correct for e in experience], device=device)
    at_start_N, chosen_N = _joined(start.logprobs, device), _joined(start.chosen, device)
    old_N = old_logprobs(
        objective.importance, batch.recorded_N, update_start_N=at_start_N, current_N=logprobs_N,
        learner_N=batch.learner_N,
    )  # fmt: skip
    advantages_N = torch.tensor([e.advantage for e in experience], device=device)[batch.sample_N]
    weights_N = engine_weights(old_N, batch.recorded_N, objective.tis_cap) if objective.tis_cap else None
    if weights_N is not None:
        advantages_N = advantages_N * weights_N
    mpt = objective.mpt
    masked_N = masked_tokens(
        logprobs_N, entropy_N, batch.sample_N, correct_B,
        mask=mpt.mask, tau=mpt.tau, sigma=mpt.sigma, batch_entropy=start.entropy if mpt.gate == "batch" else None,
    )  # fmt: skip
    rejected_N = _rejected(objective, batch, old_N, B)
    kept_N = _kept(objective, masked_N, rejected_N, chosen_N)
    loss_sum, seen = _policy_loss_sum(objective, batch, B, (logprobs_N, old_N, advantages_N, kept_N))
    if objective.loss == "gspo":
        loss_sum = loss_sum * mean_length
    if isinstance(objective.entropy, KlCovConfig) and chosen_N is not None:
        loss_sum = loss_sum + objective.entropy.coefficient * kl_cov_penalty_sum(logprobs_N, old_N, chosen_N & kept_N)
    if bonus:
        loss_sum = loss_sum - bonus * entropy_N.sum(dtype=torch.float64)
    return MicrobatchLoss(
        loss_sum, seen, entropy_N.detach(), mpt_tokens(logprobs_N, correct_B[batch.sample_N], mpt.tau),
        kept_N, masked_N, rejected_N, chosen_N, weights_N, at_start_N,
    )  # fmt: skip


def _rejected(objective: ObjectiveConfig, batch: Batch, old_N: Tensor, B: int) -> Tensor | None:
    """Return the tokens that the engine mask leaves out, bool [N]; None without a mask."""
    mask = objective.engine_mask
    if mask.level == "off":
        return None
    return ~engine_kept(old_N, batch.recorded_N, batch.sample_N, B, level=mask.level, low=mask.low, high=mask.high)


def _kept(objective: ObjectiveConfig, masked_N: Tensor, rejected_N: Tensor | None, chosen_N: Tensor | None) -> Tensor:
    """Return the tokens that no mask leaves out, bool [N]."""
    kept_N = ~masked_N
    if rejected_N is not None:
        kept_N = kept_N & ~rejected_N
    if chosen_N is not None and isinstance(objective.entropy, ClipCovConfig):
        kept_N = kept_N & ~chosen_N
    if chosen_N is not None and isinstance(objective.entropy, TopEntropyConfig):
        kept_N = kept_N & chosen_N
    return kept_N


def _policy_loss_sum(
    objective: ObjectiveConfig, batch: Batch, B: int, columns: tuple[Tensor, Tensor, Tensor, Tensor]
) -> tuple[Tensor, LossSums]:
    """columns: log-probs, those of the old policy, advantages, and whether a token is kept, [N] each."""
    low, high = objective.clip_low, objective.clip_high
    if objective.min_prefix:  # the ratio is multiplied by the smallest one before it
        logprobs_N, old_N, advantages_N, kept_N = columns
        old_N = old_N - smallest_prefix_ratio(logprobs_N - old_N, batch.sample_N)
        columns = (logprobs_N, old_N, advantages_N, kept_N)
    if objective.loss == "gspo":
        return gspo_objective_sum(*columns, batch.sample_N, B, clip_low=low, clip_high=high)
    if objective.loss == "cispo":
        return cispo_objective_sum(*columns, clip_low=low, clip_high=high)
    return clipped_objective_sum(*columns, clip_low=low, clip_high=high)


def _joined(values: Sequence[NDArray[Any]] | None, device: torch.device) -> Tensor | None:
    """Return the values of the samples' tokens [N]; None where there are none."""
    return None if values is None else torch.from_numpy(np.concatenate(values)).to(device)
