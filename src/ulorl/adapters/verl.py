"""DMMPTs and the old policy of UloRL in verl's PPO loss.

verl's registered policy losses see neither entropies nor rewards, so this module wraps the function that calls them,
`verl.workers.utils.losses.ppo_loss`: a token that DMMPTs leave out gets the advantage 0, and verl does the rest. Such a
token adds exactly zero to loss and gradient and stays in the denominator (eq. 10).

Shapes: B samples and N output tokens of a micro-batch, T tokens of its longest output.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils.metric import AggregationType, Metric
from verl.workers import config as verl_config
from verl.workers.utils import losses
from verl.workers.utils.padding import no_padding_2_padding, response_to_nested

from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.objective.mpt import Mask, masked_tokens, mpt_tokens

KEY = "actor_rollout_ref.actor.policy_loss"
PLUGIN = "ulorl.adapters.verl_plugin"
CHOICES = {
    "mask": ("off", "all", "dynamic"),
    "correct": ("score", "advantage"),
    "importance": ("pois", "sais"),
}
# In these losses a token with the advantage 0 still adds to the gradient, or changes that of other tokens.
NO_MASK = ("clip_cov", "kl_cov", "geo_mean", "dro")
CORRECTIONS = ("rollout_is", "rollout_rs")  # weights and rejection, in verl's settings of the rollout correction
SCORES = ("token_level_scores", "rm_scores")  # the score of a sample, on one of its tokens, before any KL penalty

verl_ppo_loss = losses.ppo_loss  # before `install`


@dataclass
class PolicyLossConfig(verl_config.PolicyLossConfig):  # type: ignore[misc] # a class of verl, which mypy does not follow
    """verl's settings of the policy loss, and those of UloRL. docs/verl.md explains each one.

    The fields without a default repeat settings of verl from other places. They decide whether the others make sense;
    a recipe sets them by interpolation.

    Raises UserError when a value is out of range, or when settings exclude each other.
    """

    mask: Mask = "dynamic"
    tau: float = 0.99
    sigma: float = 0.2
    correct: str = "score"
    correct_score: float = 1.0
    importance: str = "pois"

    rollout_correction: Any = field(kw_only=True)  # verl's settings, a mapping, or None
    calculate_entropy: bool = field(kw_only=True)
    train_batch_size: int = field(kw_only=True)
    ppo_mini_batch_size: int = field(kw_only=True)
    ppo_epochs: int = field(kw_only=True)

    def __post_init__(self) -> None:
        if losses.ppo_loss is not ppo_loss:
            raise _conflict("_target_", f"verl uses its own loss: export VERL_USE_EXTERNAL_MODULES={PLUGIN}")
        for name, allowed in CHOICES.items():
            if self.get(name) not in allowed:
                raise _bad_value(name, f"must be one of {', '.join(allowed)}, found {self.get(name)!r}")
        if not 0 < self.tau <= 1:
            raise _bad_value("tau", f"must be above 0 and at most 1, found {self.tau}")
        if self.sigma < 0:
            raise _bad_value("sigma", f"must be at least 0, found {self.sigma}")
        self._check_mask()
        self._check_importance()
        self._check_rollout_correction()

    @property
    def bypass_mode(self) -> bool:
        """Whether verl takes the log-probs of the rollout as the old ones."""
        return bool(self.rollout_correction and self.rollout_correction.get("bypass_mode"))

    @property
    def one_update(self) -> bool:
        """Whether a batch is one gradient update."""
        return self.ppo_epochs == 1 and self.train_batch_size <= self.ppo_mini_batch_size

    def _check_mask(self) -> None:
        if self.mask != "off" and self.loss_mode in NO_MASK:
            raise _conflict(
                "loss_mode", f"{self.loss_mode} uses the advantages of other tokens too, so no token can be left out "
                "of it: choose another loss_mode, or mask=off",
            )  # fmt: skip
        if self.mask == "dynamic" and not self.calculate_entropy:
            raise _conflict("mask", "dynamic needs entropies: set actor_rollout_ref.actor.calculate_entropy=true")

    def _check_importance(self) -> None:
        if self.importance == "sais" and not self.bypass_mode:
            raise _conflict(
                "importance", "sais takes the log-probs of the rollout as the old ones: set "
                "algorithm.rollout_correction.bypass_mode=true",
            )  # fmt: skip
        if self.importance == "pois" and self.bypass_mode and not self.one_update:
            raise _conflict(
                "importance", "pois with several gradient updates a batch needs the log-probs at the start of the "
                "update: set algorithm.rollout_correction.bypass_mode=false",
            )  # fmt: skip

    def _check_rollout_correction(self) -> None:
        if self.loss_mode == "bypass_mode":
            if self.importance == "pois":
                raise _conflict(
                    "loss_mode", "bypass_mode compares the policy with the log-probs of the rollout, which pois does "
                    "not use: choose another loss_mode, or importance=sais",
                )  # fmt: skip
        elif self.bypass_mode and (ignored := [n for n in CORRECTIONS if self.rollout_correction.get(n)]):
            raise _conflict(
                "rollout_correction", f"with bypass_mode=true verl uses {' and '.join(ignored)} only in "
                "loss_mode=bypass_mode: choose that and importance=sais, or set "
                + " and ".join(f"algorithm.rollout_correction.{name}=null" for name in ignored),
            )  # fmt: skip


def install() -> None:
    """Let verl use this module's loss in the present process. It must run before verl's workers are imported.

    Raises UserError when they have been imported.
    """
    workers = sys.modules.get("verl.workers.engine_workers")
    if workers is not None and workers.ppo_loss is not ppo_loss:
        raise _conflict("_target_", "verl's workers were imported before the loss was installed; import it first")
    losses.ppo_loss = ppo_loss


def ppo_loss(
    config: Any, model_output: dict[str, Tensor], data: TensorDict, dp_group: Any = None
) -> tuple[Tensor, dict[str, Any]]:
    """Return verl's PPO loss of a micro-batch without well-mastered positive tokens (eq. 10), and its metrics.

    With `loss_agg_mode=token-mean` the sum over tokens is divided by the number of all output tokens of the mini-batch,
    on all data-parallel ranks, masked ones included: the denominator of eq. 10.

    Args:
        config: verl's ActorConfig; its `policy_loss` is a `PolicyLossConfig` of this module.
        model_output: `log_probs` and `entropy` of all tokens of the micro-batch, as verl's engines return them.
        data: the micro-batch, as verl's engines pass it: whole samples.
        dp_group: the data-parallel group; verl's loss does not use it.

    Raises:
        UserError: the settings are verl's own, or the batch lacks the entropies or scores that they need.
    """
    settings = config.policy_loss
    if not isinstance(settings, PolicyLossConfig):
        raise _conflict("_target_", f"is verl's own class: set it to {__name__}.PolicyLossConfig")
    logprobs_BT = no_padding_2_padding(model_output["log_probs"], data).detach()
    entropy = _entropy(model_output, settings)
    entropy_BT = None if entropy is None else no_padding_2_padding(entropy, data).detach()
    masked_BT, metrics = _masks(settings, logprobs_BT, entropy_BT, data)
    data = data.copy()  # shallow: the micro-batch of the caller keeps its values
    data["advantages"] = _as_before(_padded(data, "advantages").masked_fill(masked_BT, 0), data)
    if settings.importance == "pois" and settings.bypass_mode:
        data["old_log_probs"] = _as_before(logprobs_BT, data)
    if entropy is not None and not config.entropy_coeff:
        model_output = {**model_output, "entropy": entropy.detach()}  # no backward pass for a term with the factor 0
    loss, of_verl = verl_ppo_loss(config, model_output, data, dp_group)
    return loss, of_verl | metrics


def _masks(
    settings: PolicyLossConfig, logprobs_BT: Tensor, entropy_BT: Tensor | None, data: TensorDict
) -> tuple[Tensor, dict[str, Metric]]:
    """Return which tokens are left out, bool [B, T], and the metrics of the masks."""
    output_BT = _padded(data, "loss_mask").bool()  # what verl's engines count, without any rejection of tokens
    correct_B = _correct(settings, data, output_BT)
    logprobs_N, sample_N = logprobs_BT[output_BT], output_BT.nonzero()[:, 0]
    entropy_N = torch.zeros_like(logprobs_N) if entropy_BT is None else entropy_BT[output_BT]
    masked_N = masked_tokens(
        logprobs_N, entropy_N, sample_N, correct_B, mask=settings.mask, tau=settings.tau, sigma=settings.sigma
    )
    positive_N = correct_B[sample_N]
    sums = {
        "mpt/positive_fraction": positive_N,
        "mpt/fraction": mpt_tokens(logprobs_N, positive_N, settings.tau),
        "mpt/masked_fraction": masked_N,
    }
    if entropy_BT is not None:
        sums["entropy/mean"] = entropy_N
    masked_BT = torch.zeros_like(output_BT).masked_scatter(output_BT, masked_N)
    return masked_BT, {name: _token_mean(values_N, data) for name, values_N in sums.items()}


def _entropy(model_output: dict[str, Tensor], settings: PolicyLossConfig) -> Tensor | None:
    entropy = model_output.get("entropy")
    if entropy is None and settings.mask == "dynamic":
        raise _conflict("mask", "dynamic needs entropies: set actor_rollout_ref.actor.calculate_entropy=true")
    return entropy


def _correct(settings: PolicyLossConfig, data: TensorDict, output_BT: Tensor) -> Tensor:
    """Return whether each sample is correct, bool [B]."""
    if settings.correct == "advantage":
        return (_padded(data, "advantages") * output_BT).sum(1) > 0
    name = next((name for name in SCORES if name in data), None)
    if name is None:
        raise _conflict("correct", f"score needs {' or '.join(SCORES)} in the batch, found neither; set advantage")
    return _padded(data, name).sum(1) >= settings.correct_score


def _token_mean(values_N: Tensor, data: TensorDict) -> Metric:
    """Return the mean over all output tokens of the mini-batch, as verl adds it over micro-batches and averages it over
    data-parallel ranks."""
    total = values_N.sum(dtype=torch.float64)
    if data["batch_num_tokens"] is None:
        return Metric(AggregationType.MEAN, total / max(len(values_N), 1))
    return Metric(AggregationType.SUM, total / data["batch_num_tokens"] * data["dp_size"])


def _padded(data: TensorDict, name: str) -> Tensor:
    """Return a column of the outputs, padded with zeros [B, T]."""
    padded: Tensor = data.select(name).to_padded_tensor()[name]
    return padded


def _as_before(values_BT: Tensor, data: TensorDict) -> Tensor:
    """Return values in the layout of the batch: nested where verl does not pad."""
    mask = data["response_mask"]
    return response_to_nested(values_BT, mask) if mask.is_nested else values_BT


def _conflict(name: str, problem: str) -> UserError:
    return UserError(f"{KEY}.{name}: {problem}", code=ErrorCode.CONFIG_CONFLICT, key=f"{KEY}.{name}")


def _bad_value(name: str, problem: str) -> UserError:
    return UserError(f"{KEY}.{name}: {problem}", code=ErrorCode.CONFIG_BAD_VALUE, key=f"{KEY}.{name}")
