"""LoRA through peft: low-rank adapters train, all other weights stay as they are.

All other users of the weights (engines, the saved model) get plain ones under the plain model's names. They are always
computed from the unchanged base, W + alpha / rank * B @ A, so that rounding does not accumulate.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from ulorl.config.model_config import LoraConfig
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError, one_line

ADAPTERS = "adapters.safetensors"
_NAME = "default"  # the name of our only adapter in peft's parameter names
_ADAPTER = re.compile(r"\.lora_[AB]\.")
_WRAPPED = ".base_layer"  # peft's name for the layer inside its own, which has that layer's name


def require_peft(lora: LoraConfig) -> None:
    """Refuse adapters when peft is not installed. Raises UserError."""
    if lora.rank and find_spec("peft") is None:
        raise UserError(
            f"model.lora.rank={lora.rank}: peft is not installed; pip install 'ulorl[lora]'",
            code=ErrorCode.EXTRA_MISSING,
            key="model.lora.rank",
        )


def add_lora(model: PreTrainedModel, lora: LoraConfig, checkpoint: Path | None = None) -> None:
    """Add adapters to linear layers and experts of `model`: new ones, which change nothing yet, or a checkpoint's.

    They are float32, and from now on the only parameters with gradients. Raises UserError when `lora.targets` names no
    layer, the head, or a layer whose adapters peft cannot merge by a sum, and when a checkpoint's adapters do not fit.
    """
    require_peft(lora)
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import Linear, ParamWrapper

    kind, targets = type(model).__name__, lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    settings = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=targets)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys")  # of experts, peft's own
        try:
            inject_adapter_in_model(settings, model, adapter_name=_NAME)
        except (ValueError, TypeError) as error:
            raise _targets_error(f"={targets}: {kind}: {one_line(error)}") from error
    adapted = {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}
    for name, module in adapted.items():
        if not isinstance(module, (Linear, ParamWrapper)) or module is model.get_output_embeddings():
            raise _targets_error(f": {name} of {kind} cannot be adapted, only linear layers inside can")
    for name in targets if isinstance(targets, list) and not settings.target_parameters else []:
        if not any(f".{layer}".endswith(f".{name}") for layer in adapted):
            raise _targets_error(f": {kind} has no linear layer {name}")
    for parameter in _adapters(model).values():
        parameter.data = parameter.data.float()  # bfloat16 would lose the steps of a small learning rate
    if checkpoint:
        _load(model, checkpoint / ADAPTERS)


class PlainWeights:
    """The weights of a model by the plain model's parameter names, with the adapters merged into them.

    Each iteration yields the present ones. Merged tensors are new and of the base's dtype, one at a time; so are those
    of a sharded model, which all ranks gather together. The others are the parameters themselves.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return whole(_plain(self._model, self._model.named_parameters(), merged=True))


class CopiedWeights:
    """A copy of weights in the memory of the CPU, which later updates do not change.

    Each iteration yields the copies on the devices of the originals, one at a time. keep: whether there are copies; a
    rank that only gathers with the others needs none.
    """

    def __init__(self, weights: Iterable[tuple[str, Tensor]], *, keep: bool = True) -> None:
        copies = ((name, tensor.to("cpu", copy=True), tensor.device) for name, tensor in weights if keep)
        self._copies = list(copies)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, copy.to(device)) for name, copy, device in self._copies)


def whole(named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor whole; a sharded one is gathered, by all ranks together, when its turn comes."""
    for name, tensor in named:
        yield name, tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def save_merged(model: PreTrainedModel, folder: Path) -> None:
    """Write a plain transformers folder, with the adapters merged into the weights."""
    model.save_pretrained(folder, state_dict=dict(_plain(model, model.state_dict().items(), merged=True)))


def exact_state(model: PreTrainedModel) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights without adapters, under the plain model's names, and the adapters.

    A resumed run needs both bit for bit. The tensors share the model's memory.
    """
    adapters = {name: p.detach() for name, p in _adapters(model).items()} if _deltas(model) else {}
    return dict(_plain(model, model.state_dict().items(), merged=False)), adapters


def save_exact(
    model: PreTrainedModel, folder: Path, state: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None
) -> None:
    """Write `exact_state`, present or given, as `model/` and, with LoRA, adapters.safetensors beside it."""
    base, adapters = state or exact_state(model)
    model.save_pretrained(folder / "model", state_dict=base)
    if adapters:
        save_file(adapters, folder / ADAPTERS)


def _load(model: PreTrainedModel, path: Path) -> None:
    own = _adapters(model)
    try:
        saved = load_file(path)
    except (OSError, SafetensorError) as error:
        problem = f"{path}: cannot be read ({error}); remove its checkpoint to use the one before"
        raise UserError(problem, code=ErrorCode.CHECKPOINT_DAMAGED, file=path) from None
    if {k: v.shape for k, v in saved.items()} != {k: v.shape for k, v in own.items()}:
        raise UserError(
            f"{path}: these are not the adapters of model.lora in the run's config.json",
            code=ErrorCode.MODEL_ADAPTERS,
            file=path,
            key="model.lora",
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(saved[name])


def _targets_error(problem: str) -> UserError:
    return UserError(f"model.lora.targets{problem}", code=ErrorCode.MODEL_ADAPTERS, key="model.lora.targets")


def _adapters(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _deltas(model: PreTrainedModel) -> dict[str, Any]:
    """peft's layers by the plain names of the weights they change: `weight`, in experts any other parameter."""
    return {
        f"{name.replace(_WRAPPED, '')}.{getattr(module, 'parameter_name', 'weight')}": module
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


@torch.no_grad()
def _plain(
    model: PreTrainedModel, named: Iterable[tuple[str, Tensor]], *, merged: bool
) -> Iterator[tuple[str, Tensor]]:
    """`named` tensors of `model` without the adapters, and with the names of a model that never had any."""
    deltas = _deltas(model)
    for name, tensor in named:
        if not deltas:
            yield name, tensor.detach()
        elif not _ADAPTER.search(name):
            plain = name.replace(_WRAPPED, "")
            if merged and plain in deltas:
                yield plain, (tensor + deltas[plain].get_delta_weight(_NAME)).to(tensor.dtype)
            else:
                yield plain, tensor.detach()
