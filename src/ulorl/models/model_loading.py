"""Loads the weights of any causal language model of transformers, and checks a model without loading its weights."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError, one_line
from ulorl.models.meta_model import make_meta_model
from ulorl.models.model_source import ModelSource
from ulorl.models.weight_headers import (
    check_weights,
    no_safetensors,
    refuse_mismatched,
    refuse_missing,
    refuse_surplus,
)


def load_model(source: ModelSource, *, dtype: torch.dtype, device: torch.device | str) -> PreTrainedModel:
    """Load a causal language model from safetensors, in eval mode: no dropout, so that one token has one log-prob.

    Raises:
        UserError: not found; not a causal language model; weights missing, damaged, of another shape, or not
            safetensors; not a model for `source.rope`.
    """
    path, config = source.path, copy.deepcopy(source.config)
    _refuse_other_tasks(path, config, source.trust_remote_code)
    if getattr(config, "output_router_logits", False):
        config.output_router_logits = False  # they serve transformers' router loss, which is no part of our objective
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            source.location,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=source.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, with names
        )
    except Exception as error:  # transformers, safetensors and the model's own code raise many types
        problem = _weights_problem(source.location, error)
        raise UserError(f"{path}: {problem}", code=ErrorCode.MODEL_WEIGHTS, file=path) from error
    # transformers draws missing and misshapen weights at random, drops surplus ones and only warns.
    refuse_mismatched(path, info["mismatched_keys"])
    refuse_missing(path, info["missing_keys"], model)
    refuse_surplus(path, info["unexpected_keys"], model.state_dict())
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not torch.stack(parameter.detach().aminmax()).isfinite().all():
            raise UserError(
                f"{path}: {name} holds NaN or infinite numbers; copy or download the folder again",
                code=ErrorCode.MODEL_WEIGHTS,
                file=path,
            )
    return _align(model.to(device).eval())


def check_model(source: ModelSource) -> PreTrainedModel:
    """Check all that can be wrong with a model and shows without reading its weights; return it on the meta device.

    Raises:
        UserError: not a causal language model; config.json describes no model; a local folder's files are missing,
            damaged or another model's.
    """
    _refuse_other_tasks(source.path, source.config, source.trust_remote_code)
    model = make_meta_model(source)
    if Path(source.location).is_dir():  # of a model on the hub, only a download would show its files
        check_weights(source.path, Path(source.location), model)
    return model


def recompute_activations(model: PreTrainedModel) -> None:
    """Keep only each layer's input for the backward pass, which recomputes the rest.

    Gradients stay the same. It takes a third more arithmetic, and memory of layers x tokens x hidden. Raises UserError
    for a model that does not support it.
    """
    try:  # renamed in the course of transformers 5
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    except ValueError as error:
        raise UserError(
            f"optim.recompute=true: {error}", code=ErrorCode.MODEL_UNSUPPORTED, key="optim.recompute"
        ) from error
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True  # transformers' condition; only the layer, so that dropout inside it stays off


def _align(model: PreTrainedModel) -> PreTrainedModel:
    """Move parameters to addresses that are multiples of 64 bytes, as torch allocates them.

    In a mapped file they begin anywhere, and the last bit of MKL's products depends on that: a loaded model must
    compute exactly what the saved one did.
    """
    for parameter in model.parameters():
        if parameter.data_ptr() % 64:
            parameter.data = parameter.data.clone()
    return model


def _refuse_other_tasks(path: str, config: PreTrainedConfig, trust_remote_code: bool) -> None:
    """A classifier with a tied head would load as a causal language model, so the architecture is read first."""
    if trust_remote_code and hasattr(config, "auto_map"):
        return
    names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    causal = {name for value in names for name in ([value] if isinstance(value, str) else value)}
    architectures = getattr(config, "architectures", None) or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise UserError(
            f"{path}: config.json: architectures is {architectures!r}, expected a list of class names",
            code=ErrorCode.MODEL_CONFIG,
            file=path,
        )
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or (
        architectures and not causal.intersection(architectures)
    ):
        found = ", ".join(architectures) or f"model_type {config.model_type}"
        raise UserError(
            f"{path}: not a causal LM of transformers (config.json says {found})",
            code=ErrorCode.MODEL_UNSUPPORTED,
            file=path,
        )


def _weights_problem(location: str, error: BaseException) -> str:
    folder = Path(location)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        return no_safetensors(folder)
    return f"the weights cannot be loaded ({one_line(error)}); copy or download the folder again"
