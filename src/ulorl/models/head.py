"""What stands between tokens and logits: the hidden states before the head, and the head itself.

Shapes: B samples, S positions, N tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ulorl.errors import UserError


@dataclass(frozen=True, eq=False)
class Head:
    """A model's last layer: logits = cap(scale * (weight @ hidden + bias)), cap(x) = softcap * tanh(x / softcap)."""

    weight_VH: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None  # Gemma 2's final_logit_softcapping
    scale: float = 1.0  # Cohere's logit_scale, 1 / Granite's logits_scaling


def head_of(model: PreTrainedModel) -> Head:
    """The model's last layer, with the caps and scales that transformers' models put on their logits.

    The tensors are the model's own parameters, so gradients reach them. `check_head` says whether this is all there is.
    """
    layer = model.get_output_embeddings()
    if layer is None or getattr(layer, "weight", None) is None:
        raise UserError(f"{type(model).__name__}: has no LM head (get_output_embeddings() is {layer})")
    return Head(
        weight_VH=layer.weight,
        bias_V=getattr(layer, "bias", None),
        softcap=_softcap(_text_config(model)),
        scale=_scale(_text_config(model)),
    )


def hidden_states(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None
) -> Tensor:
    """Final hidden states [B, S, H] (after the last norm), the head's input, of token ids [B, S]."""
    output = model.base_model(
        input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
    )
    hidden: Tensor = output.last_hidden_state
    return hidden


def _text_config(model: PreTrainedModel) -> Any:
    return model.config.get_text_config(decoder=True)


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
