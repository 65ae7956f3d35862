"""Converts between a model's parameters and the tensors of its safetensors files, one layer at a time.

transformers holds some weights in another shape than the files that everyone exchanges: the experts of a layer as one
tensor, for example. Its own conversion takes a whole model; here it gets one layer after the other, so that no more
than a layer is held twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from ulorl.errors import name_some

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """Where a parameter holds the elements of one tensor of the files, as `torch.as_strided` takes it.

    offset, stride: in elements of the contiguous parameter. size: the shape of the tensor in the files.
    """

    stored: str
    size: Shape
    stride: Shape
    offset: int

    @property
    def end(self) -> int:
        """One more than the last element of the parameter that belongs to the tensor."""
        return self.offset + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True)) + 1


class WeightConversion:
    """The conversion between the names and shapes of a model and those of its safetensors files.

    model: on the meta device, or any plain model; only names, shapes, types and transformers' rules are read.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        parameters = {name for name, _ in model.named_parameters()}
        state = {name: _meta(tensor) for name, tensor in model.state_dict().items()}
        buffers = {name for name, _ in model.named_buffers()}
        self.held = {name: tensor for name, tensor in state.items() if name in parameters | buffers}
        """Parameters and saved buffers by the model's names, tied ones once, on the meta device."""
        self.tied = state.keys() - self.held.keys()
        """The other names of tied parameters, which the files do not hold."""
        self._unit_of = _units(model, state)
        self._needed: dict[str, set[str]] = {unit: set() for unit in self._unit_of.values()}
        for name in parameters:
            self._needed[self._unit_of[name]].add(name)

    def stored(self) -> dict[str, Tensor]:
        """Return the tensors of the model's safetensors files, on the meta device, in the order of `convert`."""
        return dict(self.convert(self.held.items()))

    def convert(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Yield the named tensors of the safetensors files of a model's named parameters.

        A layer is converted when all its parameters were seen, so they may come in any order; in the model's own, at
        most one layer waits. Raises ValueError for an unknown name, and at the end for a missing parameter.
        """
        waiting: dict[str, dict[str, Tensor]] = {}
        missing = {unit: set(names) for unit, names in self._needed.items()}
        for name, tensor in weights:
            if name not in self.held and name not in self.tied:
                raise ValueError(f"weights: unknown {name_some([name])}")
            unit = self._unit_of[name]
            waiting.setdefault(unit, {})[name] = tensor
            del tensor  # nothing may hold it longer than the layer
            missing[unit].discard(name)
            if not missing[unit]:
                yield from revert_weight_conversion(self.model, waiting.pop(unit)).items()
        if absent := sorted(set().union(*missing.values())):
            raise ValueError(f"weights: missing {name_some(absent)}")

    def places(self) -> dict[str, list[Place]] | None:
        """Return which tensors of the files hold the elements of each parameter and saved buffer.

        The result is None when a tensor of the files is more than a part of one parameter in another order, so that
        only transformers itself can load it.
        """
        places: dict[str, list[Place]] = {name: [] for name in self.held}
        for unit in dict.fromkeys(self._unit_of.values()):
            whole = {name: _meta(tensor) for name, tensor in self.held.items() if self._unit_of[name] == unit}
            try:
                with torch.no_grad(), _CopiesAreViews():  # type: ignore[no-untyped-call]
                    parts: Mapping[str, Tensor] = revert_weight_conversion(self.model, dict(whole))
            except Exception:  # a conversion that computes, or needs a copy: transformers raises any type
                return None
            owners = {tensor.untyped_storage()._cdata: name for name, tensor in whole.items()}
            for stored, part in parts.items():
                owner = owners.get(part.untyped_storage()._cdata)
                if owner is None or part.dtype != whole[owner].dtype:
                    return None
                place = Place(stored, tuple(part.shape), part.stride(), int(part.storage_offset()))
                places[owner].append(place)
        return places if all(_covered(self.held[name], found) for name, found in places.items()) else None


@dataclass(frozen=True)
class StoredWeights:
    """The named tensors of the safetensors files of a model's named parameters, converted in each iteration."""

    conversion: WeightConversion
    parameters: Iterable[tuple[str, Tensor]]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return self.conversion.convert(self.parameters)


class _CopiesAreViews(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets `contiguous()` and `clone()` return their input, so that the parts of a tensor stay views of it.

    A view's offset and stride then tell which elements of the tensor the part consists of.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is torch.ops.aten.clone.default else func(*args, **(kwargs or {}))


def _meta(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _covered(tensor: Tensor, places: Iterable[Place]) -> bool:
    return sum(torch.Size(place.size).numel() for place in places) == tensor.numel()


def _units(model: PreTrainedModel, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return for each name the unit that is converted together: a layer, or a module outside the layers.

    A model whose conversion joins tensors of several layers is one unit.
    """
    units = {name: _unit(name) for name in state}
    parts: dict[str, Shape] = {}
    try:
        for unit in dict.fromkeys(units.values()):
            tensors = {name: tensor for name, tensor in state.items() if units[name] == unit}
            parts |= _shapes(revert_weight_conversion(model, tensors))
    except Exception:  # transformers raises any type for a part that it cannot convert alone
        parts = {}
    alone = parts == _shapes(revert_weight_conversion(model, dict(state)))
    return units if alone else dict.fromkeys(state, "")


def _unit(name: str) -> str:
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdecimal()]
    return ".".join(parts[: numbers[0] + 1] if numbers else parts[:-1])


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
