"""Loads any causal LM of transformers and gives the learner its parts: hidden states and head."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ulorl.config.model_config import RopeConfig
from ulorl.errors import UserError
from ulorl.models.rope import OWN, scale_positions
from ulorl.models.weight_headers import (
    brief,
    check_weights,
    first,
    no_safetensors,
    refuse_mismatched,
    refuse_missing,
    refuse_surplus,
    skeleton,
)

TINY = "ulorl:tiny"


def load_model(
    path: str,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    trust_remote_code: bool = False,
    rope: RopeConfig = OWN,
) -> PreTrainedModel:
    """Load a causal LM from safetensors, in eval mode: no dropout, so that one token has one log-prob.

    Args:
        path: a transformers folder, a hub name, or `ulorl:tiny`.
        dtype: of the weights.
        device: where they go.
        trust_remote_code: run Python code found beside the weights.
        rope: YaRN, which the model's configuration then carries.

    Raises:
        UserError: not found; not a causal LM; weights missing, damaged, of another shape, or not safetensors; not a
            model for this `rope`.
    """
    source = resolve(path)
    config = load_config(path, trust_remote_code=trust_remote_code, rope=rope)
    _refuse_other_tasks(path, config, trust_remote_code)
    if getattr(config, "output_router_logits", False):
        config.output_router_logits = False  # they are for a router loss of transformers', which is no part of ours
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, with names
        )
    except Exception as error:  # of transformers, safetensors and the model's own code, in many types
        raise UserError(f"{path}: {_weights_problem(source, error)}") from error
    # transformers draws missing and misshapen weights at random, drops surplus ones and only warns.
    refuse_mismatched(path, info["mismatched_keys"])
    refuse_missing(path, info["missing_keys"], model)
    refuse_surplus(path, info["unexpected_keys"], model.state_dict())
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not torch.stack(parameter.detach().aminmax()).isfinite().all():
            raise UserError(f"{path}: {name} holds NaN or infinite numbers; copy or download the folder again")
    return _aligned(model.to(device).eval())


def _aligned(model: PreTrainedModel) -> PreTrainedModel:
    """The model, its parameters at addresses that are multiples of 64 bytes, as torch allocates them. Those that lie in
    a mapped file begin anywhere, and MKL's products depend on that in the last bit: a model that is loaded must compute
    exactly what the one that was saved did."""
    for parameter in model.parameters():
        if parameter.data_ptr() % 64:
            parameter.data = parameter.data.clone()
    return model


def check_model(path: str, config: PreTrainedConfig, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Everything about the model at `path` that can be wrong and shows without reading its weights: `config` (that of
    `load_config`), and a local folder's files against it. Returns the model on torch's meta device.

    Raises:
        UserError: not a causal LM; no model by this config.json; files that are missing, damaged or another model's.
    """
    source = resolve(path)
    _refuse_other_tasks(path, config, trust_remote_code)
    model = skeleton(path, config, trust_remote_code=trust_remote_code)
    if Path(source).is_dir():  # else on the hub: only a download would show
        check_weights(path, Path(source), model)
    return model


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer that stands beside a model. Raises UserError when there is none or it is damaged."""
    source = resolve(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        tokenizer("")  # settings that only its use shows to be wrong
    except Exception as error:  # the Rust tokenizer raises bare Exception for a damaged tokenizer.json
        raise UserError(
            f"{path}: no usable tokenizer ({brief(error)}); a model folder needs tokenizer.json and "
            "tokenizer_config.json, as written by tokenizer.save_pretrained(folder)"
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise UserError(f"{path}: the tokenizer has no vocabulary; is tokenizer.json missing from the folder?")
    return tokenizer


def resolve(path: str) -> str:
    """The folder or hub name behind `model.path`. Raises UserError for a folder that is missing or no model's."""
    if path == TINY:
        from ulorl.models.tiny import model_path

        return str(model_path())
    folder = os.path.expanduser(path)  # os.path finds nothing where Path raises: names too long, unknown users
    if os.path.isdir(folder):
        if not (Path(folder) / "config.json").is_file():
            raise UserError(f"{path}: no config.json in this folder; a transformers model folder has one")
        return folder
    if os.path.exists(folder):
        raise UserError(f"{path}: is a file; give the folder that holds config.json and the safetensors")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path):
        raise UserError(f"{path}: no such folder, and not a hub name (owner/name) either")
    return path


def recompute_activations(model: PreTrainedModel) -> None:
    """Keep only each layer's input for the backward pass, which recomputes the rest: the same gradients, a third more
    arithmetic, and memory of layers x tokens x hidden. Raises UserError for a model that cannot."""
    try:  # renamed in the course of transformers 5
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    except ValueError as error:
        raise UserError(f"optim.recompute=true: {error}") from error
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True  # transformers' condition; the layer alone, so that no dropout wakes inside it


def checkpoint_names(
    path: str, *, trust_remote_code: bool = False
) -> Callable[[Iterable[tuple[str, Tensor]]], list[tuple[str, Tensor]]]:
    """A function from a model's parameters, as the model at `path` names them, to those of its safetensors files.

    transformers holds some weights in another shape than the files that everyone exchanges: the experts of a layer as
    one tensor, for example. The function raises ValueError for an unknown name or a missing parameter.
    """
    model = skeleton(path, load_config(path, trust_remote_code=trust_remote_code), trust_remote_code=trust_remote_code)
    known, needed = set(model.state_dict()), {name for name, _ in model.named_parameters()}

    def convert(weights: Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
        named = dict(weights)
        if wrong := sorted(named.keys() - known) or sorted(needed - named.keys()):
            raise ValueError(f"weights: {'unknown' if wrong[0] in named else 'missing'} {first(wrong)}")
        return list(revert_weight_conversion(model, named).items())

    return convert


def eos_ids(path: str, tokenizer: PreTrainedTokenizerBase, *, trust_remote_code: bool = False) -> tuple[int, ...]:
    """Token ids that end an output, ascending: those of generation_config.json, config.json and the tokenizer.

    Raises:
        UserError: none of them names one; no output would ever be complete.
    """
    source = resolve(path)
    ids = [tokenizer.eos_token_id]
    configs = [_load_config(path, source, trust_remote_code).get_text_config(decoder=True)]
    try:
        configs.append(GenerationConfig.from_pretrained(source))
    except Exception as error:
        if (Path(source) / "generation_config.json").exists():  # a folder may be without one
            raise UserError(f"{path}: generation_config.json cannot be used ({brief(error)})") from error
    for config in configs:
        named = getattr(config, "eos_token_id", None)
        ids += named if isinstance(named, (list, tuple)) else [named]
    if wrong := [i for i in ids if i is not None and (isinstance(i, bool) or not isinstance(i, int) or i < 0)]:
        raise UserError(f"{path}: eos_token_id in generation_config.json or config.json is {wrong[0]!r}, no token id")
    vocabulary = getattr(configs[0], "vocab_size", None) or sys.maxsize
    named_ids = {i for i in ids if i is not None}
    found = tuple(sorted(i for i in named_ids if i < vocabulary))
    if not found:
        beyond = f" below vocab_size={vocabulary} (found {named_ids})" if named_ids else ""
        raise UserError(
            f"{path}: neither generation_config.json nor the tokenizer names an EOS token{beyond}; "
            "set eos_token_id in generation_config.json"
        )
    return found


def load_config(path: str, *, trust_remote_code: bool = False, rope: RopeConfig = OWN) -> PreTrainedConfig:
    """A model folder's config.json with `rope` in it, without its weights. Raises UserError when there is none, when it
    is unusable, or not for this `rope`."""
    config: PreTrainedConfig = _load_config(path, resolve(path), trust_remote_code)
    scale_positions(config, rope, path)
    return config


def context_length(of: PreTrainedModel | PreTrainedConfig) -> int | None:
    """Positions the model is made for, prompt and output together (with YaRN: its factor times the original length);
    None when the configuration names no limit."""
    config = getattr(of, "config", of).get_text_config(decoder=True)
    length = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if length and rope.get("rope_type") == "yarn":
        length = max(length, int(rope["factor"] * (rope.get("original_max_position_embeddings") or length)))
    return int(length) if length else None


def _load_config(path: str, source: str, trust_remote_code: bool) -> Any:
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:  # of transformers' many checks, in many types
        if "trust_remote_code" in str(error):
            mend = "it brings its own Python code; set model.trust_remote_code=true if you trust it"
        elif Path(source).is_dir():
            mend = f"config.json cannot be used ({brief(error)})"
        else:
            mend = f"no such folder, and the hub did not give it ({brief(error)})"
        raise UserError(f"{path}: {mend}") from error


def _refuse_other_tasks(path: str, config: Any, trust_remote_code: bool) -> None:
    """A classifier's folder would load as a causal LM when its head is tied, so the architecture is read first."""
    if trust_remote_code and hasattr(config, "auto_map"):
        return
    names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    causal = {name for value in names for name in ([value] if isinstance(value, str) else value)}
    architectures = getattr(config, "architectures", None) or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise UserError(f"{path}: config.json: architectures is {architectures!r}, expected a list of class names")
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or (
        architectures and not causal.intersection(architectures)
    ):
        found = ", ".join(architectures) or f"model_type {config.model_type}"
        raise UserError(f"{path}: not a causal LM of transformers (config.json says {found})")


def _weights_problem(source: str, error: BaseException) -> str:
    folder = Path(source)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        return no_safetensors(folder)
    return f"the weights cannot be loaded ({brief(error)}); copy or download the folder again"
