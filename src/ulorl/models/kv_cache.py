"""Keys and values in preallocated slots, as a `Cache` of transformers, so that a model's own forward pass uses them.

The token at position p of a row is at index p of its slot. Active rows are 0..n-1, so a forward pass reads views and
copies nothing. Entries beyond a row's length may hold any finite number: they are masked, and overwritten before they
are read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

_ROUND = 64  # capacities are a multiple of this, plus _SKEW
_SKEW = 16  # at distances of a power of two, transposed keys would share few lines of a CPU's cache


@dataclass(frozen=True)
class Place:
    """The entries that one forward pass of [rows, Q] tokens writes; it reads the first `length` entries of its rows."""

    rows: slice
    start: int  # first position written, when every row writes the same Q positions
    length: int
    positions: torch.Tensor | None = None  # decode (Q = 1): the position each row writes, [rows]; `start` is not used
    index: torch.Tensor | None = None  # decode: 0..rows-1


@dataclass
class _Shared:
    """The state that all layers share. It is not the cache, so that no cycle keeps an engine's memory alive."""

    slots: int
    rows: int  # slots that have memory
    capacity: int
    place: Place
    transposed_keys: bool


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values, each [rows, KV heads, capacity, head dimension], allocated at the first use.

    With `transposed_keys` keys are [rows, KV heads, head dimension, capacity]: the fused decoder decodes, and `update`
    is for prefill only.
    """

    def __init__(self, shared: _Shared) -> None:
        super().__init__()
        self._shared = shared

    def lazy_initialization(self, key_states: torch.Tensor, _value_states: torch.Tensor) -> None:
        """Allocate the buffers; called by transformers."""
        self.allocate(key_states)
        self.is_initialized = True

    def allocate(self, like: torch.Tensor) -> None:
        """Allocate buffers for keys and values like these, [rows, KV heads, Q, head dimension]."""
        shared = self._shared
        shape = (shared.rows, like.shape[1], shared.capacity, like.shape[3])
        # zeros and not empty: a masked entry is multiplied by 0, and 0 * NaN is NaN
        self.values = like.new_zeros(shape)
        self.keys = like.new_zeros((*shape[:2], shape[3], shape[2]) if shared.transposed_keys else shape)

    def _written_keys(self) -> torch.Tensor:
        """Keys as [rows, KV heads, capacity, head dimension], a view."""
        keys: torch.Tensor = self.keys
        return keys.transpose(2, 3) if self._shared.transposed_keys else keys

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: object, **_kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write entries of [rows, KV heads, Q, head dimension], and return the rows' views up to the place's length."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        place, keys = self._shared.place, self._written_keys()
        for buffer, new in ((keys, key_states), (self.values, value_states)):
            if place.positions is None:
                buffer[place.rows, :, place.start : place.start + new.shape[2]] = new
            else:
                buffer[place.index, :, place.positions] = new[:, :, 0]
        if place.positions is None and not place.start:
            return key_states, value_states  # the rows hold nothing else
        keys, values = keys[place.rows, :, : place.length], self.values[place.rows, :, : place.length]
        # attention kernels want the head dimension to be the innermost one
        return keys.contiguous() if self._shared.transposed_keys else keys, values

    def grow(self) -> None:
        """Move the entries to buffers of the new capacity."""
        if self.is_initialized:
            keys, values = self._written_keys(), self.values
            self.allocate(values)
            for new, old in ((self._written_keys(), keys), (self.values, values)):
                both = min(len(new), len(old))
                new[:both, :, : old.shape[2]] = old[:both]

    def copy(self, sources: torch.Tensor, targets: torch.Tensor, length: int) -> None:
        """Copy the first `length` entries of rows `sources` to rows `targets`, [m] each."""
        for buffer in (self._written_keys(), self.values):
            buffer[targets, :, :length] = buffer[sources, :, :length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the length of keys and their offset, as transformers' masks need them."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Return the first position that the next forward pass writes."""
        return self._shared.place.start

    def get_max_length(self) -> int:
        """Return how many entries fit into a row."""
        return self._shared.capacity


class SlotCache(Cache):  # type: ignore[misc]
    """The keys and values of all layers. `at` sets where the next forward pass writes and reads."""

    def __init__(self, layers: int, slots: int, *, transposed_keys: bool = False) -> None:
        self._shared = _Shared(slots, 0, 0, Place(slice(0, 0), 0, 0), transposed_keys)
        super().__init__(layers=[SlotLayer(self._shared) for _ in range(layers)])

    @property
    def capacity(self) -> int:
        """How many entries fit into a row."""
        return self._shared.capacity

    def at(self, place: Place) -> SlotCache:
        """Return this cache, set to `place` for one forward pass."""
        self._shared.place = place
        return self

    def reserve(self, rows: int, length: int, most: int) -> None:
        """Provide memory for `length` entries in each of the first `rows` rows, which are all that are in use.

        most: entries of the longest row when all rows have ended, if none ends early. Lengths double up to it, so that
        growing costs a constant time for each token. Raises what torch raises when there is no memory; the
        cache is empty then.
        """
        shared = self._shared
        if rows <= shared.rows and length <= shared.capacity:
            return
        if rows > shared.rows:
            shared.rows = min(shared.slots, max(rows, 2 * shared.rows))
        elif 2 * rows <= shared.rows:
            shared.rows = rows  # few outputs grow long: the memory of the others is freed
        if length > shared.capacity:
            length = max(length, min(2 * shared.capacity, most))
            shared.capacity = -(-length // _ROUND) * _ROUND + _SKEW
        try:
            for layer in self.layers:
                layer.grow()
        except BaseException:  # no memory: some layers are too small now
            self.clear()
            raise

    def buffers(self, layer: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the buffers of one layer. like: keys or values of rows, [rows, KV heads, head dimension]."""
        own = self.layers[layer]
        if not own.is_initialized:
            own.lazy_initialization(like[:, :, None], like[:, :, None])
        return own.keys, own.values

    def copy(self, sources: torch.Tensor, targets: torch.Tensor, length: int) -> None:
        """Copy the first `length` entries of rows `sources` to rows `targets`, [m] each."""
        if length:
            for layer in self.layers:
                layer.copy(sources, targets, length)

    def clear(self) -> None:
        """Free all memory."""
        self._shared.rows = self._shared.capacity = 0
        for layer in self.layers:
            layer.keys = layer.values = None
            layer.is_initialized = False
