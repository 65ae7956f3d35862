"""Checks whether the processes of a group can share a model's sequences, from its configuration, before loading it."""

from __future__ import annotations

import ast
import inspect
import sys
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError, name_some
from ulorl.models.attention import FLASH
from ulorl.models.model_source import text_config

# What a model may give transformers' attention functions. Others (sinks, position biases, indices of a sparse
# attention) belong to heads or positions that other processes hold.
_KNOWN = {
    "attention_mask", "cu_seq_lens_k", "cu_seq_lens_q", "deterministic", "dropout", "is_causal", "max_length_k",
    "max_length_q", "output_attentions", "position_ids", "scaling", "sliding_window", "softcap",
}  # fmt: skip


def check_ulysses(of: PreTrainedModel | PreTrainedConfig, sequence_parallel: int, attention: str) -> None:
    """Refuse a model whose sequences cannot be shared by so many processes with this attention kernel.

    of: a model, on the meta device too, or a configuration. Raises UserError with the key optim.sequence_parallel.
    """
    if sequence_parallel == 1:
        return
    config = text_config(of)
    if problem := (
        _kernel_problem(config, attention)
        or _head_problem(config, sequence_parallel)
        or _layer_problem(config)
        or _code_problem(of)
    ):
        raise UserError(
            f"optim.sequence_parallel={sequence_parallel}: {problem}",
            code=ErrorCode.MODEL_UNSUPPORTED,
            key="optim.sequence_parallel",
        )


def _kernel_problem(config: Any, attention: str) -> str:
    if attention not in ("sdpa", FLASH):
        return f"model.attention={attention} cannot be split over processes; use sdpa or {FLASH}"
    if attention == "sdpa" and _has_window(config):
        return f"the model has sliding windows, which need a mask of the whole sequence; use model.attention={FLASH}"
    if attention == "sdpa" and getattr(config, "attn_logit_softcapping", None):
        return f"sdpa knows no soft-cap of attention logits, which the model has; use model.attention={FLASH}"
    return ""


def _has_window(config: Any) -> bool:
    if layers := getattr(config, "layer_types", None):
        return "sliding_attention" in layers
    return bool(getattr(config, "sliding_window", None)) and bool(getattr(config, "use_sliding_window", True))


def _head_problem(config: Any, processes: int) -> str:
    queries = getattr(config, "num_attention_heads", None)
    keys = getattr(config, "num_key_value_heads", None) or queries
    if not isinstance(queries, int) or not isinstance(keys, int):
        return "the model's config.json does not state one number of attention heads for all layers"
    if queries % processes:
        return f"{processes} does not divide the model's {queries} attention heads; choose a divisor"
    if keys % processes and processes % keys:
        return f"the model's {keys} key-value heads are neither a multiple nor a divisor of {processes}"
    return ""


def _layer_problem(config: Any) -> str:
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        return f"the model has layers of kind {name_some(sorted(kinds))}, which carry a state along the sequence"
    # These take the frequencies from the largest position that a process sees.
    if kinds := {"dynamic", "longrope"} & _rope_types(getattr(config, "rope_parameters", None) or {}):
        return f"rope_type={min(kinds)} depends on the length of the whole sequence; use yarn"
    return ""


def _rope_types(parameters: dict[str, Any]) -> set[str]:
    """Return the kinds of rotary embedding; some models have one for each kind of layer."""
    inner = [value for value in parameters.values() if isinstance(value, dict)]
    return {str(each.get("rope_type")) for each in (parameters, *inner)}


def _code_problem(of: PreTrainedModel | PreTrainedConfig) -> str:
    """Return what the model's class does that cannot be split; "" also for a class that only the model's folder has."""
    model = of if isinstance(of, PreTrainedModel) else AutoModelForCausalLM._model_mapping.get(type(of), None)
    if model is None:
        return ""
    name = (model if isinstance(model, type) else type(model)).__name__
    if getattr(model, "_is_stateful", False):
        return f"{name} carries a state along the sequence"
    if not model._can_set_attn_implementation():
        return f"{name} does not use transformers' attention functions"
    if unknown := sorted(_attention_arguments(model.__module__) - _KNOWN):
        return f"{name} gives its attention {unknown[0]}, which cannot be split"
    return ""


def _attention_arguments(module: str) -> set[str]:
    """Return the names of the arguments that the classes of a module give transformers' attention functions."""
    calls = (node for node in ast.walk(ast.parse(inspect.getsource(sys.modules[module]))) if isinstance(node, ast.Call))
    return {
        keyword.arg
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == "attention_interface"
        for keyword in call.keywords
        if keyword.arg
    }
