"""The objective of UloRL as pure functions of tensors, for any trainer: group advantages (eq. 4), the old policy of
importance sampling (TOIS, SAIS, POIS), well-mastered positive tokens and their dynamic masking (eqs. 9 and 10), the
clipped token-level loss (eqs. 7 and 10), and what other methods have in their place: docs/objective.md."""

from ulorl.objective.advantage import group_advantages, is_informative
from ulorl.objective.corrections import engine_kept, engine_weights, smallest_prefix_ratio
from ulorl.objective.entropy_control import (
    adapted_coefficient,
    clip_cov_tokens,
    covariances,
    entropy_bonus,
    kl_cov_penalty_sum,
    kl_cov_tokens,
    top_entropy_tokens,
)
from ulorl.objective.importance import old_logprobs, ratios
from ulorl.objective.mismatch import Mismatch, logprob_mismatch
from ulorl.objective.mpt import masked_tokens, mpt_tokens, sample_mean
from ulorl.objective.overlong import soft_overlong_penalty
from ulorl.objective.policy_loss import LossSums, cispo_objective_sum, clipped_objective_sum, gspo_objective_sum

__all__ = [
    "LossSums", "Mismatch", "adapted_coefficient", "cispo_objective_sum", "clip_cov_tokens", "clipped_objective_sum",
    "covariances", "engine_kept", "engine_weights", "entropy_bonus", "group_advantages", "gspo_objective_sum",
    "is_informative", "kl_cov_penalty_sum", "kl_cov_tokens", "logprob_mismatch", "masked_tokens", "mpt_tokens",
    "old_logprobs", "ratios", "sample_mean", "smallest_prefix_ratio", "soft_overlong_penalty", "top_entropy_tokens",
]  # fmt: skip
