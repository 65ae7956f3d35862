"""The two parts of a model that log-probs are computed from: the final hidden states, and the head (the last layer).

Shapes: B samples, S sequence, H hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.models.model_source import text_config


@dataclass(frozen=True, eq=False)
class Head:
    """A model's last layer: logits = cap(scale * (weight @ hidden + bias)), cap(x) = softcap * tanh(x / softcap)."""

    weight_VH: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None  # Gemma 2's final_logit_softcapping
    scale: float = 1.0  # Cohere's logit_scale, 1 / Granite's logits_scaling


def head_of(model: PreTrainedModel) -> Head:
    """Return the model's last layer, with the caps and scales that transformers' models apply to their logits.

    The tensors are the model's own parameters, so gradients reach them. `check_head` checks that nothing is missing.
    Raises UserError for a model without LM head.
    """
    layer = model.get_output_embeddings()
    if layer is None or getattr(layer, "weight", None) is None:
        raise UserError(
            f"{type(model).__name__}: has no LM head (get_output_embeddings() is {layer})",
            code=ErrorCode.MODEL_UNSUPPORTED,
        )
    return Head(
        weight_VH=layer.weight,
        bias_V=getattr(layer, "bias", None),
        softcap=_softcap(text_config(model)),
        scale=_scale(text_config(model)),
    )


def hidden_states(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None
) -> Tensor:
    """Return the final hidden states [B, S, H] (after the last norm), the head's input, of token ids [B, S]."""
    output = model.base_model(
        input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
    )
    hidden: Tensor = output.last_hidden_state
    return hidden


def _softcap(config: Any) -> float | None:
    for key in ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap"):
        if cap := getattr(config, key, None):
            return float(cap)
    return None


def _scale(config: Any) -> float:
    scale = float(getattr(config, "logit_scale", None) or 1.0)  # Cohere
    scale *= float(getattr(config, "lm_head_multiplier", None) or 1.0)  # Falcon-H1
    scaling = float(getattr(config, "logits_scaling", None) or 1.0)
    return scale * scaling if config.model_type == "hyperclovax" else scale / scaling  # Granite divides
