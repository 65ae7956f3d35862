"""A model on torch's meta device, made from config.json: names and shapes of its parameters, without memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError, name_some, one_line
from ulorl.models.model_source import ModelSource


def make_meta_model(source: ModelSource) -> PreTrainedModel:
    """Make the model of a source's config.json on the meta device. Raises UserError when transformers cannot."""
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                copy.deepcopy(source.config), trust_remote_code=source.trust_remote_code
            )
    except Exception as error:  # a model's code raises anything for sizes that do not fit
        raise UserError(
            f"{source.path}: config.json: no model can be built from it ({one_line(error)})",
            code=ErrorCode.MODEL_CONFIG,
            file=source.path,
        ) from error
    return model


def checkpoint_names(
    source: ModelSource,
) -> Callable[[Iterable[tuple[str, Tensor]]], list[tuple[str, Tensor]]]:
    """Return a function from a model's named parameters to the named tensors of its safetensors files.

    transformers holds some weights in another shape than the files that everyone exchanges: the experts of a layer as
    one tensor, for example. The function raises ValueError for an unknown name or a missing parameter.
    """
    model = make_meta_model(source)
    known, needed = set(model.state_dict()), {name for name, _ in model.named_parameters()}

    def convert(weights: Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
        named = dict(weights)
        if wrong := sorted(named.keys() - known) or sorted(needed - named.keys()):
            raise ValueError(f"weights: {'unknown' if wrong[0] in named else 'missing'} {name_some(wrong)}")
        return list(revert_weight_conversion(model, named).items())

    return convert
