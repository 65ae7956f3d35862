"""The objective of UloRL as pure functions of tensors, for any trainer: group advantages (eq. 4), the old policy of
importance sampling (TOIS, SAIS, POIS), well-mastered positive tokens and their dynamic masking (eqs. 9 and 10), and the
clipped token-level loss (eqs. 7 and 10)."""

from ulorl.objective.advantage import group_advantages, is_informative
from ulorl.objective.importance import engine_weights, old_logprobs, ratios
from ulorl.objective.mismatch import Mismatch, logprob_mismatch
from ulorl.objective.mpt import masked_tokens, mpt_tokens, sample_mean
from ulorl.objective.overlong import soft_overlong_penalty
from ulorl.objective.policy_loss import LossSums, clipped_objective_sum

__all__ = [
    "LossSums", "Mismatch", "clipped_objective_sum", "engine_weights", "group_advantages", "is_informative",
    "logprob_mismatch", "masked_tokens", "mpt_tokens", "old_logprobs", "ratios", "sample_mean", "soft_overlong_penalty",
]  # fmt: skip
