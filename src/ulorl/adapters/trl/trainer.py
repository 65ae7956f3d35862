"""TRL's GRPOTrainer with UloRL's objective (eq. 10).

TRL generates, scores and computes advantages. This class adds which samples are correct and which are trained, the
denominator of a whole update, the loss, and its metrics.

Shapes: B samples of a micro-batch, T completion tokens of a sample, N trained tokens of a micro-batch, F reward
functions, G group size.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from trl import GRPOTrainer
from trl.trainer.utils import nanstd

from ulorl.adapters.trl.config import UloRLConfig
from ulorl.adapters.trl.refusals import check_rollout, check_trainer
from ulorl.adapters.trl.tiled_head import use_tiled_head
from ulorl.adapters.trl.update_means import SUMS, stacked, update_means
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.learner.model_checks import check_head
from ulorl.objective import clipped_objective_sum, masked_tokens, mpt_tokens, old_logprobs

Inputs = Mapping[str, Any]
ROUNDING = 1e-6  # of a float32 sum of rewards; relative above 1
IMAGES = (
    "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles",
    "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids",
)  # fmt: skip


class UloRLTrainer(GRPOTrainer):  # type: ignore[misc]
    """TRL's GRPOTrainer with DMMPTs, POIS or SAIS, and the paper's denominator.

    It takes the arguments of GRPOTrainer; `args` is a `UloRLConfig`. What TRL does is unchanged but for the loss, its
    metrics, and the head, which computes log-probs and entropies in small tiles.

    Raises:
        UserError: `args` is no UloRLConfig, or the model, the reward functions or the device do not go with it.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        given = signature(super().__init__).bind(*arguments, **named).arguments
        if not isinstance(args := given.get("args"), UloRLConfig):
            found = "is missing" if args is None else f"is a {type(args).__name__}"
            message = f"args: {found}; give a ulorl.adapters.trl.UloRLConfig"
            raise UserError(message, code=ErrorCode.CONFIG_BAD_VALUE, key="args")
        check_rollout(args, given.get("rollout_func"))
        super().__init__(*arguments, **named)
        check_trainer(self)
        model = self.model.get_base_model() if is_peft_model(self.model) else self.model
        training = model.training
        check_head(model.eval())
        model.train(training)
        use_tiled_head(model, self.temperature, float32=self.args.cast_lm_head_to_fp32)
        # The weights at the start of the update are then the present ones. TRL computes log-probs of its own for vLLM,
        # in other batches, whose rounding differs.
        self._one_update = self.num_iterations == 1 and args.steps_per_generation == args.gradient_accumulation_steps
        self._rewards_BF: Tensor | None = None  # of the samples of all processes
        self._sums: Tensor | None = None  # over the tokens of the update in progress

    def _calculate_rewards(self, *arguments: Any, **named: Any) -> Tensor:
        self._rewards_BF = super()._calculate_rewards(*arguments, **named)
        return self._rewards_BF

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """Add `correct` and `trained`, bool [B], which TRL shuffles and splits with the samples."""
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        rewards_BF, advantages_B = self._rewards_BF, output["advantages"]
        assert rewards_BF is not None
        first = self.accelerator.process_index * len(advantages_B)
        own = slice(first, first + len(advantages_B))
        correct_B = advantages_B > 0 if self.args.mpt_correct == "advantage" else self._rewarded(rewards_BF)[own]
        trained_B = torch.ones_like(correct_B)
        if self.args.dynamic_sampling and self.model.training:
            normalized = self.multi_objective_aggregation == "normalize_then_sum"
            trained_B = informative(rewards_BF, self.reward_weights, self.num_generations, normalized=normalized)[own]
        return output | {"correct": correct_B, "trained": trained_B}

    def _rewarded(self, rewards_BF: Tensor) -> Tensor:
        """Return which samples have the reward of a correct one, bool [B]. One that nothing scored has not."""
        if name := self.args.mpt_correct_function:
            reward_B = rewards_BF[:, self.reward_func_names.index(name)]
        else:
            reward_B = weighted_sums(rewards_BF, self.reward_weights)
        correct_B: Tensor = reward_B >= self.args.mpt_correct_reward - ROUNDING
        return correct_B

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """Return a micro-batch whose `num_items_in_batch` counts the trained tokens of its whole gradient update, over
        all its micro-batches and processes."""
        inputs: dict[str, Any] = super()._prepare_inputs(generation_batch)
        if not self.model.training:  # an evaluated batch is whole, and TRL counted it
            return inputs
        accumulated = self.args.gradient_accumulation_steps
        first = self._step % self.args.steps_per_generation // accumulated * accumulated
        update = self._buffered_inputs[first : first + accumulated]
        tokens = torch.stack([trained_tokens(one).sum() for one in update]).sum()
        return inputs | {"num_items_in_batch": self.accelerator.gather(tokens).sum()}

    def _compute_loss(self, model: Any, inputs: Inputs) -> Tensor:
        """Return this micro-batch's part of eq. 10: its sum over tokens, divided by the tokens of the whole update.

        TRL's processes average their gradients, so the sum is multiplied by their number.
        """
        mask_BT = trained_tokens(inputs)
        logprobs_BT, entropy_BT, _ = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            mask_BT.shape[1],
            compute_entropy=True,
            **{name: inputs.get(name) for name in IMAGES},
        )
        loss_sum, sums = self._loss_sum(inputs, mask_BT, logprobs_BT[mask_BT], entropy_BT[mask_BT])
        self._log_update(sums, weighted="importance_sampling_ratio" in inputs)
        total = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
        loss: Tensor = (loss_sum / total).to(logprobs_BT.dtype)
        return loss

    def _loss_sum(
        self, inputs: Inputs, mask_BT: Tensor, logprobs_N: Tensor, entropy_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the sum of eq. 10 over a micro-batch, and the sums for its metrics (`update_means.SUMS`)."""
        args, correct_B = self.args, inputs["correct"]
        sample_N = torch.nonzero(mask_BT)[:, 0]
        old_N = old_logprobs(
            args.importance,
            recorded_N=_recorded(inputs, mask_BT, logprobs_N) if args.importance == "sais" else logprobs_N,
            update_start_N=None if self._one_update else _flat(inputs.get("old_per_token_logps"), mask_BT),
            current_N=logprobs_N,
        )
        weights_N = _flat(inputs.get("importance_sampling_ratio"), mask_BT)  # TRL's correction of vLLM's mismatch
        weights_N = torch.ones_like(old_N) if weights_N is None else weights_N
        masked_N = masked_tokens(
            logprobs_N, entropy_N, sample_N, correct_B, mask=args.mpt_mask, tau=args.mpt_tau, sigma=args.mpt_sigma
        )
        loss_sum, seen = clipped_objective_sum(
            logprobs_N, old_N, inputs["advantages"][sample_N] * weights_N, ~masked_N,
            clip_low=self.epsilon_low, clip_high=self.epsilon_high,
        )  # fmt: skip
        mpt_N = mpt_tokens(logprobs_N, correct_B[sample_N], args.mpt_tau)
        sums = stacked({
            "tokens": mask_BT.sum(), "kept": seen.tokens, "entropy": entropy_N.sum(dtype=torch.float64),
            "mpts": mpt_N.sum(), "mpt_entropy": entropy_N[mpt_N].sum(dtype=torch.float64), "masked": masked_N.sum(),
            "ratio": seen.ratio, "clipped": seen.clipped, "weights": weights_N[~masked_N].sum(dtype=torch.float64),
        })  # fmt: skip
        return loss_sum, sums

    def _log_update(self, sums: Tensor, *, weighted: bool) -> None:
        """Add the sums of a micro-batch; at the end of an update, log its means over all processes."""
        self._sums = sums if self._sums is None else self._sums + sums
        if self.model.training and not self.accelerator.sync_gradients:
            return
        total = self.accelerator.reduce(self._sums, reduction="sum")
        assert len(total) == len(SUMS)
        self._sums = None
        logged = self._metrics["train" if self.model.training else "eval"]
        for name, value in update_means(total, weighted=weighted).items():
            logged[name].append(value)


def weighted_sums(rewards_BF: Tensor, weights_F: Tensor) -> Tensor:
    """Return the rewards [B] that TRL makes of those of all functions; nan where none of them scored a sample."""
    sums_B = (rewards_BF * weights_F.to(rewards_BF.device)).nansum(1)
    return sums_B.masked_fill(rewards_BF.isnan().all(1), torch.nan)


def informative(rewards_BF: Tensor, weights_F: Tensor, group: int, *, normalized: bool) -> Tensor:
    """Return whether a sample's group has members with different weighted sums (dynamic sampling, DAPO), bool [B].

    A group with a member that no function scored is not informative: as in `ulorl train`, it is not trained.

    Args:
        rewards_BF: of whole groups of `group` neighbours; nan where a function did not score a sample.
        weights_F: of the functions in the sum.
        normalized: whether each function's rewards are normalized in their group before the sum (TRL's
            `normalize_then_sum`).
    """
    if normalized:
        rewards_KGF = rewards_BF.view(-1, group, rewards_BF.shape[1])
        apart_KGF = rewards_KGF - rewards_KGF.nanmean(1, keepdim=True)
        rewards_BF = (apart_KGF / (nanstd(rewards_KGF, dim=1, keepdim=True) + 1e-4)).flatten(0, 1)
    sums_KG = weighted_sums(rewards_BF, weights_F).view(-1, group)
    spread_K = sums_KG.amax(1) - sums_KG.amin(1)  # nan, which is not above anything, with a member without a score
    return (spread_K > ROUNDING * sums_KG.abs().amax(1).clamp(min=1)).repeat_interleave(group)


def trained_tokens(inputs: Inputs) -> Tensor:
    """Return the tokens of a micro-batch that count in the loss, bool [B, T]: completions of trained samples, without
    what tools wrote."""
    mask_BT: Tensor = inputs["completion_mask"].bool() & inputs["trained"][:, None]
    return mask_BT & inputs["tool_mask"].bool() if "tool_mask" in inputs else mask_BT


def _flat(values: Tensor | None, mask_BT: Tensor) -> Tensor | None:
    """Return the values of the trained tokens [N], from one for each token [B, T] or sample [B, 1]."""
    return None if values is None else values.expand(mask_BT.shape)[mask_BT]


def _recorded(inputs: Inputs, mask_BT: Tensor, logprobs_N: Tensor) -> Tensor:
    """Return the log-probs that were recorded when the tokens were drawn [N]; the present ones, with which the ratio is
    1, where vLLM could not compute any (nan). Raises UserError where none were recorded."""
    recorded_N = _flat(inputs.get("sampling_per_token_logps"), mask_BT)
    if recorded_N is None:
        message = "importance=sais: the rollout_func returned no logprobs; return those of the tokens, or use pois"
        raise UserError(message, code=ErrorCode.CONFIG_CONFLICT, key="importance")
    return torch.where(recorded_N.isnan(), logprobs_N.detach(), recorded_N)
