"""Refuses settings of TRL that contradict UloRL's objective, before training starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from trl import GRPOConfig

from ulorl.error_codes import ErrorCode
from ulorl.errors import CombinedError, UserError

CHOICES = {
    "mpt_mask": ("off", "all", "dynamic"),
    "mpt_correct": ("reward", "advantage"),
    "importance": ("pois", "sais"),
}
PROCESSED = "processed_logprobs"  # vLLM's log-probs of the distribution that it draws from
# Sampling from the whole distribution, to which the log-probs of the model belong.
WHOLE = {"top_p": (1.0,), "top_k": (0, -1, None), "min_p": (None, 0.0), "repetition_penalty": (1.0,)}
WHOLE_HEAD = "the head needs its whole weight in every process, as without sharding (DDP)"
# The only value that goes with this objective, and the reason.
FIXED: dict[str, tuple[Any, str]] = {
    "loss_type": ("dapo", "the loss is eq. 10, a mean over all tokens of an update, which is closest to dapo"),
    "importance_sampling_level": ("token", "eq. 10 has one ratio for each token"),
    "beta": (0.0, "eq. 10 has no KL term"),
    "delta": (None, "eq. 10 clips a ratio on one side, by epsilon and epsilon_high"),
    "top_entropy_quantile": (1.0, "it and the masks of UloRL would both choose tokens by their entropy; use one"),
    "entropy_coef": (0.0, "a bonus and DMMPTs would both control the entropy, and the entropies have no gradient here"),
    "use_adaptive_entropy": (False, "a bonus and DMMPTs would both control the entropy"),
    "off_policy_mask_threshold": (None, "POIS trains every sample with the newest policy as the old one"),
    "use_liger_kernel": (False, "the head is UloRL's own, and TRL deprecates Liger; use_kernels has the layers"),
    "deepspeed": (None, WHOLE_HEAD),
}


def check_settings(args: GRPOConfig) -> None:
    """Raise a UserError with every setting of a UloRLConfig that is out of range or contradicts the objective."""
    _raise([*_out_of_range(args), *_fixed(args), *_conflicts(args)])


def check_rollout(args: GRPOConfig, rollout_func: Any) -> None:
    """Raise a UserError if nothing records the log-probs that `importance=sais` needs."""
    if args.importance == "sais" and not args.use_vllm and rollout_func is None:
        text = "sais needs recorded log-probs of the tokens; set use_vllm=True, give a rollout_func, or use pois"
        raise _conflict("importance", text)


def check_trainer(trainer: Any) -> None:
    """Raise a UserError for what only a built trainer shows: reward functions, vLLM's server, model and device."""
    args, found = trainer.args, list[UserError]()
    if args.mpt_correct_function and args.mpt_correct_function not in trainer.reward_func_names:
        text = f"{args.mpt_correct_function} is none of the reward functions: {', '.join(trainer.reward_func_names)}"
        found.append(_conflict("mpt_correct_function", text))
    if args.importance == "sais" and args.use_vllm and args.vllm_mode == "server" and trainer.is_world_process_zero():
        mode = trainer.vllm_generation.vllm_client.get_server_info()["model_config"]["logprobs_mode"]
        if mode != PROCESSED:
            text = f"the server returns {mode}, without the temperature; start it with --logprobs-mode {PROCESSED}"
            found.append(_conflict("vllm_mode", text))
    if trainer.aux_loss_enabled:
        text = "eq. 10 has no load-balancing loss; set router_aux_loss_coef=0.0"
        found.append(_conflict("router_aux_loss_coef", text))
    for name, used in (("deepspeed", trainer.is_deepspeed_enabled), ("fsdp", trainer.is_fsdp_enabled)):
        if used:  # the arguments of the same names are refused before: this is the configuration of accelerate
            found.append(_conflict(name, f"is on in the configuration of accelerate launch; turn it off: {WHOLE_HEAD}"))
    if trainer.is_distributed_loading_by_transformers:
        text = f"was loaded in parts (tp_plan, tp_size or distributed_config); load it whole: {WHOLE_HEAD}"
        found.append(_conflict("model", text))
    if trainer.accelerator.device.type == "mps":
        found.append(_conflict("use_cpu", "the sums of the loss are float64, which MPS lacks; set use_cpu=True"))
    _raise(found)


def _out_of_range(args: GRPOConfig) -> Iterator[UserError]:
    for name, choices in CHOICES.items():
        if getattr(args, name) not in choices:
            yield _value(name, f"must be one of {', '.join(choices)}, found {getattr(args, name)!r}")
    if not 0 < args.mpt_tau <= 1:
        yield _value("mpt_tau", f"is a probability above 0 and at most 1, found {args.mpt_tau}")
    if not args.mpt_sigma >= 0:
        yield _value("mpt_sigma", f"is an entropy in nats, at least 0, found {args.mpt_sigma}")
    if not 0 < args.epsilon <= 1:
        yield _value("epsilon", f"is the clip below 1, above 0 and at most 1, found {args.epsilon}")
    if args.epsilon_high is not None and not args.epsilon_high > 0:
        yield _value("epsilon_high", f"is the clip above 1, above 0, found {args.epsilon_high}")


def _fixed(args: GRPOConfig) -> Iterator[UserError]:
    for name, (value, reason) in FIXED.items():
        if getattr(args, name) != value:
            yield _conflict(name, f"must be {value!r} here, found {getattr(args, name)!r}: {reason}")
    if args.fsdp:
        yield _conflict("fsdp", f"must not be set here: {WHOLE_HEAD}")


def _conflicts(args: GRPOConfig) -> Iterator[UserError]:
    steps, accumulated = args.steps_per_generation, args.gradient_accumulation_steps
    if steps % accumulated:
        yield _conflict(
            "steps_per_generation",
            f"{steps} is not a multiple of gradient_accumulation_steps={accumulated}: the loss is divided by the "
            "tokens of a whole gradient update, whose completions must all be there before its first backward pass",
        )
    if args.importance == "sais" and args.use_vllm and args.vllm_importance_sampling_correction:
        yield _conflict(
            "vllm_importance_sampling_correction",
            "with importance=sais the ratio already divides by vLLM's log-probs; set it to False, or use pois",
        )
    if args.importance == "sais" and args.use_vllm:
        sampling = {name: getattr(args, name) for name in WHOLE} | (args.generation_kwargs or {})
        for name, whole in WHOLE.items():
            if sampling[name] not in whole:
                text = f"{sampling[name]} draws from a part of the distribution, with log-probs that differ from the "
                yield _conflict(name, f"{text}model's for every token; set it to {whole[0]}, or use pois")
        if sampling.get("temperature", args.temperature) != args.temperature:
            yield _conflict("generation_kwargs", "temperature: must be that of the training; set temperature instead")
    if args.mpt_correct_function and args.mpt_correct == "advantage":
        yield _conflict("mpt_correct_function", "has no effect with mpt_correct=advantage; leave one of them out")


def _value(name: str, text: str) -> UserError:
    return UserError(f"{name}: {text}", code=ErrorCode.CONFIG_BAD_VALUE, key=name)


def _conflict(name: str, text: str) -> UserError:
    return UserError(f"{name}: {text}", code=ErrorCode.CONFIG_CONFLICT, key=name)


def _raise(found: Sequence[UserError]) -> None:
    if len(found) == 1:
        raise found[0]
    if found:
        raise CombinedError(found)
