"""The learner's weights as vLLM's weight transfer reads them. Imported only where vLLM is installed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod

import torch
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

Weights = Iterable[tuple[str, torch.Tensor]]


class StreamedWeights(WeightSource):  # type: ignore[misc]
    """vLLM's `WeightSource` of weights that exist one at a time: gathered, merged or copied in each iteration.

    vLLM's own `ModuleSource` would make them all for names and shapes in every update; they stay the same in a run, so
    they are read once, here. weights: can be iterated several times.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._shapes = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in weights]

    @property
    def largest(self) -> int:
        """The bytes of the largest tensor."""
        return max(prod(shape) * dtype.itemsize for _, dtype, shape in self._shapes)

    def use(self, weights: Weights) -> None:
        """Let the next iterations yield other weights with the same names, dtypes and shapes."""
        self._weights = weights

    def metadata(self) -> list[ParamMeta]:
        """Return names, dtypes and shapes in the order of an iteration."""
        return [ParamMeta(*one) for one in self._shapes]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        return iter(self._weights)
