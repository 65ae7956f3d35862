"""Checks whether the embedded engine decodes a model exactly, before the first request."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.cache_utils import get_layer_types_and_kwargs

from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.models.model_source import context_length, text_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WINDOWED = ("sliding_attention", "chunked_attention")
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}  # nats, mean over the vocabulary
_TOLERANCE_LOW = 0.1  # for shorter dtypes


def longest_row(model: PreTrainedModel, max_length: int | None) -> int:
    """Return the longest prompt + output. Raises UserError when `max_length` exceeds the model's context with YaRN."""
    limit = context_length(model)
    if limit is None and max_length is None:
        raise _error(model, "does not state max_position_embeddings; give max_length")
    if limit is not None and max_length is not None and max_length > limit:
        raise _error(model, f"max_length={max_length} exceeds its max_position_embeddings={limit}")
    length = max_length if max_length is not None else limit
    assert length is not None
    return length


def full_attention_layers(model: PreTrainedModel, max_length: int) -> int:
    """Return the number of layers, after checking that the engine decodes them exactly.

    Raises UserError when a layer does not attend to the whole context, or when positions of one row depend on the
    length of others.
    """
    config = text_config(model)
    if getattr(model.config, "is_encoder_decoder", False):
        raise _error(model, "is an encoder-decoder; the torch engine decodes causal language models only")
    kinds, settings = get_layer_types_and_kwargs(config)
    if isinstance(settings, dict):  # transformers 5.17 has the same settings for every layer, 5.23 a list
        settings = [settings] * len(kinds)
    for layer, (kind, setting) in enumerate(zip(kinds, settings, strict=True)):
        window = setting.get("sliding_window")
        if kind == "full_attention" or (kind in _WINDOWED and window and window >= max_length):
            continue
        beyond = f" with a window of {window} tokens, and max_length={max_length}" if window else ""
        raise _error(
            model,
            f"layer {layer} is {kind}{beyond}; the torch engine decodes full attention only, or contexts no longer "
            "than the window",
        )
    _check_rope(model, config, max_length)
    return len(kinds)


def _check_rope(model: PreTrainedModel, config: Any, max_length: int) -> None:
    rope = getattr(config, "rope_parameters", None) or {}
    for entry in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        kind, original = entry.get("rope_type"), entry.get("original_max_position_embeddings")
        limit = original or getattr(config, "original_max_position_embeddings", 0) or config.max_position_embeddings
        if kind in ("dynamic", "longrope") and max_length > limit:
            raise _error(
                model,
                f"rope_type={kind} changes with the longest row of a batch beyond {limit} tokens, found "
                f"max_length={max_length}; lower it, or use yarn",
            )


def cache_argument(model: PreTrainedModel) -> str:
    """Return the name under which the model's forward pass takes its cache: transformers 5.24 has another than 5.23."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def check_decoding(
    model: PreTrainedModel,
    slots: int,
    prefill: Callable[[int, Sequence[np.ndarray]], None],
    decode: Callable[[np.ndarray, np.ndarray], torch.Tensor],
) -> None:
    """Decode two short rows of different lengths (one, with one slot) and compare with the model's own forward pass.

    This finds what no list of architectures can: positions taken from a mask, attention biases, caches of another
    kind. prefill: computes keys and values of sequences from a row on. decode: returns the logits [n, V] after tokens
    [n] at positions [n]. Raises UserError when the results differ.
    """
    implementation = model.config._attn_implementation
    if implementation not in ("sdpa", "eager"):  # the others take no mask of this kind
        model.set_attn_implementation("sdpa")
    size = model.get_input_embeddings().num_embeddings
    rows = [np.arange(1, 1 + length) * 7 % size for length in (5, 3)[:slots]]
    expected = [model(input_ids=torch.from_numpy(row)[None].to(model.device)).logits[0, -1] for row in rows]
    try:
        prefill(0, [row[:-1] for row in rows])
        logits = decode(np.array([row[-1] for row in rows]), np.array([len(row) - 1 for row in rows]))
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise _error(model, f"cannot be decoded by the torch engine: {error}") from error
    difference = (logits.float().log_softmax(-1) - torch.stack(expected).float().log_softmax(-1)).abs().mean().item()
    if not difference <= _TOLERANCE.get(model.dtype, _TOLERANCE_LOW):
        raise _error(
            model,
            f"cannot be decoded by the torch engine: its log-probs differ by {difference:.2g} nats from the model's "
            "own forward pass",
        )


def _error(model: PreTrainedModel, problem: str) -> UserError:
    return UserError(f"{type(model).__name__}: {problem}", code=ErrorCode.ENGINE_MODEL)
