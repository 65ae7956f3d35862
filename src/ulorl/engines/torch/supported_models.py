"""Which models the embedded engine decodes exactly, decided before the first request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.cache_utils import get_layer_types_and_kwargs

from ulorl.errors import UserError
from ulorl.models.model_source import context_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WINDOWED = ("sliding_attention", "chunked_attention")
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}  # nats, mean over the vocabulary
_TOLERANCE_LOW = 0.1  # of shorter dtypes


def longest_row(model: PreTrainedModel, max_length: int | None) -> int:
    """Longest prompt + output. Raises UserError when `max_length` exceeds the model's own, YaRN's reach included."""
    limit = context_length(model)
    if limit is None and max_length is None:
        raise UserError(f"{_name(model)} does not state max_position_embeddings; give max_length")
    if limit is not None and max_length is not None and max_length > limit:
        raise UserError(f"max_length={max_length} exceeds the model's max_position_embeddings={limit}")
    length = max_length if max_length is not None else limit
    assert length is not None
    return length


def full_attention_layers(model: PreTrainedModel, max_length: int) -> int:
    """The number of layers. Raises UserError when one does not attend to the whole context, or when positions of
    one row depend on the length of others."""
    config = _config(model)
    if getattr(model.config, "is_encoder_decoder", False):
        raise UserError(f"{_name(model)} is an encoder-decoder; the torch engine decodes causal language models only")
    kinds, settings = get_layer_types_and_kwargs(config)
    for layer, (kind, setting) in enumerate(zip(kinds, settings, strict=True)):
        window = setting.get("sliding_window")
        if kind == "full_attention" or (kind in _WINDOWED and window and window >= max_length):
            continue
        beyond = f" with a window of {window} tokens, and max_length={max_length}" if window else ""
        raise UserError(
            f"{_name(model)}: layer {layer} is {kind}{beyond}; the torch engine decodes full attention only, or "
            "contexts no longer than the window"
        )
    _check_rope(model, config, max_length)
    return len(kinds)


def _check_rope(model: PreTrainedModel, config: Any, max_length: int) -> None:
    rope = getattr(config, "rope_parameters", None) or {}
    for entry in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        kind, original = entry.get("rope_type"), entry.get("original_max_position_embeddings")
        limit = original or getattr(config, "original_max_position_embeddings", 0) or config.max_position_embeddings
        if kind in ("dynamic", "longrope") and max_length > limit:
            raise UserError(
                f"{_name(model)}: rope_type={kind} changes with the longest row of a batch beyond {limit} tokens, "
                f"found max_length={max_length}; lower it, or use yarn"
            )


def check_decoding(
    model: PreTrainedModel,
    slots: int,
    prefill: Callable[[int, Sequence[np.ndarray]], None],
    decode: Callable[[np.ndarray, np.ndarray], torch.Tensor],
) -> None:
    """Decodes two short rows of different lengths (one, with one slot) and compares with the model's own forward.

    Catches what no list of architectures can: positions taken from a mask, attention biases, caches of another
    kind. Raises UserError.
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
        raise UserError(f"{_name(model)} cannot be decoded by the torch engine: {error}") from error
    difference = (logits.float().log_softmax(-1) - torch.stack(expected).float().log_softmax(-1)).abs().mean().item()
    if not difference <= _TOLERANCE.get(model.dtype, _TOLERANCE_LOW):
        raise UserError(
            f"{_name(model)} cannot be decoded by the torch engine: its log-probs differ by {difference:.2g} nats from "
            "the model's own forward"
        )


def _config(model: PreTrainedModel) -> Any:
    return model.config.get_text_config(decoder=True)


def _name(model: PreTrainedModel) -> str:
    return type(model).__name__
