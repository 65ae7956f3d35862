"""A model on torch's meta device, made from config.json: names and shapes of its parameters, without memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError, one_line
from ulorl.models.model_source import ModelSource
from ulorl.models.weight_conversion import StoredWeights, WeightConversion


def make_meta_model(source: ModelSource, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Make the model of a source's config.json on the meta device, with weights of `dtype` (None: config.json's).

    Raises UserError when transformers cannot.
    """
    given = {} if dtype is None else {"dtype": dtype}
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                copy.deepcopy(source.config), trust_remote_code=source.trust_remote_code, **given
            )
    except Exception as error:  # a model's code raises anything for sizes that do not fit
        raise UserError(
            f"{source.path}: config.json: no model can be built from it ({one_line(error)})",
            code=ErrorCode.MODEL_CONFIG,
            file=source.path,
        ) from error
    return model


def checkpoint_names(source: ModelSource) -> Callable[[Iterable[tuple[str, Tensor]]], StoredWeights]:
    """Return a function from a model's named parameters to the named tensors of its safetensors files.

    An iteration converts one layer after the other, and raises ValueError for an unknown name or, at the end, for a
    missing parameter.
    """
    return partial(StoredWeights, WeightConversion(make_meta_model(source)))
