"""Weights in Ray's object store: written once by rank 0 of the learner, read by every engine, chunk by chunk.

Ray removes a chunk when no process refers to it any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor

CHUNK_BYTES = 256 * 2**20  # of a chunk; a larger tensor has a chunk of its own
_ALIGNED = 64  # bytes: where a tensor begins in its chunk


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies in its chunk."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class StoredWeights:
    """Names and tensors in the object store. It can be pickled, and iterated any number of times, in any process."""

    chunks: tuple[Any, ...]  # object references
    bytes: int

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for chunk in self.chunks:
            entries, stored = ray.get(chunk)
            data = torch.from_numpy(stored.copy())  # an array in the store is read-only, and is held while it is used
            del stored
            for entry in entries:
                yield entry.name, data[entry.start : entry.end].view(entry.dtype).view(entry.shape)


def store_weights(tensors: Iterable[tuple[str, Tensor]], chunk_bytes: int = CHUNK_BYTES) -> StoredWeights:
    """Put tensors into the object store. Needs the memory of two chunks besides."""
    chunks, total = list[Any](), 0
    entries, parts, size = list[_Entry](), list[Tensor](), 0
    for name, tensor in tensors:
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        if entries and size + raw.numel() > chunk_bytes:
            chunks.append(_put(entries, parts, size))
            entries, parts, size = [], [], 0
        entries.append(_Entry(name, tensor.dtype, tuple(tensor.shape), size, size + raw.numel()))
        parts.append(raw)
        total += raw.numel()
        size += -(-raw.numel() // _ALIGNED) * _ALIGNED
    if entries:
        chunks.append(_put(entries, parts, size))
    return StoredWeights(tuple(chunks), total)


def _put(entries: list[_Entry], parts: list[Tensor], size: int) -> Any:
    data: NDArray[np.uint8] = np.empty(size, np.uint8)
    for entry, part in zip(entries, parts, strict=True):
        data[entry.start : entry.end] = part.numpy()
    return ray.put((entries, data))
