"""One decode step of the Llama and Qwen families on a CPU, with few and large operations.

In transformers' own forward pass, a small model's decode step mostly consists of some sixty small operations for each
layer and of an attention kernel made for many queries. Here the three input projections are one product, the two of the
MLP are one, queries and keys are normed and rotated together, cosines come from a table, the norms' weights are
multiplied into the matrix that follows them, and attention is two batched products over keys that are stored
transposed. Rows attend in blocks, each of which reads only as many entries as its longest row needs; the engine keeps
rows of similar length together.

The parameters stay the model's: each becomes a view into the joined matrix. A product uses a copy of that matrix,
packed where torch has oneDNN. That is up to twice as fast as `torch.mm`, for twice the memory, but it starts slower and
needs a kernel for each number of rows, so small products do not use it. `refresh` copies again after the parameters
have changed.

Shapes: n active rows, H hidden, h heads, D head dimension, V vocabulary, P positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel, Qwen2ForCausalLM, Qwen3ForCausalLM

from ulorl.models.cpu.linear_products import has_onednn, onednn_product, small_packed_product
from ulorl.models.kv_cache import SlotCache

_FAMILIES = (LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
_SPLIT = 512  # entries: one more attention call must save so many reads
_READ_ROUND = 16  # entries read are a multiple of this


def can_fuse(model: PreTrainedModel) -> bool:
    """Return whether a model is a dense Llama, Qwen2 or Qwen3 in float32 on a CPU.

    What its configuration changes beyond that is found by the engine's comparison with the model's own forward pass.
    """
    return (
        type(model) in _FAMILIES
        and model.device.type == "cpu"
        and model.dtype == torch.float32
        and model.config.hidden_act == "silu"
    )


class _Linear:
    """Linear layers over the same input as one product, [n, in] to [n, sum of outs].

    `norm` [in] is the weight of the RMS norm before them, which is multiplied into the matrix.
    """

    def __init__(self, *linears: torch.nn.Linear, norm: Tensor | None = None) -> None:
        biases = [linear.bias for linear in linears if linear.bias is not None]
        self._weight = _view_into_one([linear.weight for linear in linears])
        self._bias = _view_into_one(biases) if biases else None
        self._norm = norm
        self._plain: Tensor | None = None  # transposed
        self._packed: Tensor | None = None
        self._small = small_packed_product(self._weight.numel())

    def pack(self, rows: int) -> None:
        """Copy the present parameters, for products of about `rows` rows."""
        weight = self._weight if self._norm is None else self._weight * self._norm
        self._plain = weight.T.contiguous()
        if has_onednn():
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
            if weight.numel() > self._small:
                self._plain = None

    def __call__(self, x: Tensor) -> Tensor:
        if self._plain is not None and (self._packed is None or len(x) * self._plain.numel() <= self._small):
            return torch.mm(x, self._plain) if self._bias is None else torch.addmm(self._bias, x, self._plain)
        assert self._packed is not None
        return onednn_product(x, self._packed, self._bias)


@dataclass(frozen=True)
class _Layer:
    """The products and norms of one layer."""

    qkv: _Linear
    head_norms: tuple[Tensor, Tensor] | None  # Qwen3: of queries and keys, [D] each
    out: _Linear
    gate_up: _Linear
    down: _Linear


class FusedDecoder:
    """Decodes one token for rows 0..n-1 of `cache`, whose keys must be transposed."""

    def __init__(self, model: PreTrainedModel, cache: SlotCache, rows: int, max_length: int) -> None:
        """rows: the most that decode together. max_length: the longest row."""
        config = model.config
        self._cache, self._rows, self._max_length = cache, rows, max_length
        self._core = model.model
        self._head = _Linear(model.lm_head, norm=model.model.norm.weight)
        self._eps = torch.tensor(config.rms_norm_eps)
        self._heads: int = config.num_attention_heads
        self._kv_heads: int = config.num_key_value_heads
        self._dim: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._layers = [_joined(layer) for layer in model.model.layers]
        self._table = torch.empty(0)  # cosines and signed sines of positions 0, 1, ..., [P, 2, 1, D]
        self._write: _Write | None = None
        self._causal = torch.empty(0)  # as many zeros as the cache has entries, then as many -inf
        self.refresh()

    def refresh(self) -> None:
        """Copy the present parameters, after they have changed."""
        for layer in self._layers:
            for linear in (layer.qkv, layer.out, layer.gate_up, layer.down):
                linear.pack(self._rows)
        self._head.pack(self._rows)
        # both head norms as one, over all queries' and keys' heads, [heads + KV heads, D]
        self._head_norms = [
            None if norms is None else torch.cat([norms[0].repeat(self._heads, 1), norms[1].repeat(self._kv_heads, 1)])
            for norms in (layer.head_norms for layer in self._layers)
        ]

    def __call__(self, tokens_n: np.ndarray, positions_n: np.ndarray) -> Tensor:
        """Return the logits after each row's token at its position, [n, V]. Writes keys and values."""
        at_n, n = torch.from_numpy(positions_n), len(positions_n)
        hidden_nH = F.embedding(torch.from_numpy(tokens_n), self._core.embed_tokens.weight)
        cos_n1D, sin_n1D = self._rotations(int(positions_n.max()) + 1).index_select(0, at_n).unbind(1)
        blocks = [self._block(rows, positions_n) for rows in row_blocks(positions_n)]
        capacity = self._cache.capacity
        if self._write is None or self._write.size != (n, capacity):
            self._write = _Write(n, self._kv_heads, self._dim, capacity)
        write, places = self._write, self._write.places(at_n)
        sizes = (self._heads + self._kv_heads, self._kv_heads)
        for index, layer in enumerate(self._layers):
            qk, v = layer.qkv(self._normed(hidden_nH)).view(n, -1, self._dim).split_with_sizes(sizes, dim=1)
            if (weight := self._head_norms[index]) is not None:
                qk = self._normed(qk).mul_(weight)
            q, k = _rotated(qk, cos_n1D, sin_n1D).split_with_sizes((self._heads, self._kv_heads), dim=1)
            keys, values = self._cache.buffers(index, like=v)
            write(keys, values, k, v, *places)
            attended = [self._attend(q, keys, values, *block) for block in blocks]
            hidden_nH += layer.out(attended[0] if len(attended) == 1 else torch.cat(attended))
            gate, up = layer.gate_up(self._normed(hidden_nH)).chunk(2, dim=-1)
            hidden_nH += layer.down(F.silu(gate).mul_(up))
        return self._head(self._normed(hidden_nH))

    def _normed(self, x: Tensor) -> Tensor:
        """RMS norm over the last dimension, without its weight."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * torch.addcmul(self._eps, length, length, value=1 / x.shape[-1]).rsqrt_()

    def _rotations(self, positions: int) -> Tensor:
        """Cosines and signed sines of at least so many positions; the sign is that of the half they multiply."""
        if len(self._table) < positions:
            at_1P = torch.arange(min(max(positions, self._cache.capacity), self._max_length))[None]
            cos, sin = self._core.rotary_emb(self._eps, at_1P)
            first, second = sin[0].chunk(2, dim=-1)
            self._table = torch.stack([cos[0], torch.cat([-first, second], dim=-1)], dim=1)[:, :, None]
        return self._table

    def _block(self, rows: slice, positions_n: np.ndarray) -> tuple[slice, int, Tensor]:
        """The rows, how many entries they read, and the mask of these, [rows x KV heads, 1, entries]."""
        own, capacity = positions_n[rows], self._cache.capacity
        length = min(-(-(int(own.max()) + 1) // _READ_ROUND) * _READ_ROUND, capacity)
        if len(self._causal) != 2 * capacity:
            self._causal = torch.zeros(2 * capacity)
            self._causal[capacity:] = float("-inf")
        starts = torch.from_numpy(np.repeat(capacity - 1 - own, self._kv_heads))  # zeros up to the row's position
        return rows, length, self._causal.unfold(0, length, 1).index_select(0, starts)[:, None]

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, rows: slice, length: int, mask: Tensor) -> Tensor:
        """Attention of a block's rows, [rows, heads x D]."""
        n, dim, capacity = rows.stop - rows.start, self._dim, self._cache.capacity
        pairs, first = n * self._kv_heads, rows.start * self._kv_heads * dim * capacity
        queries = q.narrow(0, rows.start, n).reshape(pairs, -1, dim)
        keys = keys.as_strided((pairs, dim, length), (dim * capacity, capacity, 1), first)
        values = values.as_strided((pairs, length, dim), (dim * capacity, dim, 1), first)
        scores = torch.baddbmm(mask, queries, keys, alpha=dim**-0.5)
        return torch.bmm(scores.softmax(-1), values).view(n, -1)


def row_blocks(positions_n: np.ndarray) -> list[slice]:
    """Return the neighbouring rows that attend together.

    Each block reads as many entries for every row as its longest row has. A block is split in two as long as that saves
    reading `_SPLIT` entries.
    """
    blocks, open_blocks = [], [slice(0, len(positions_n))]
    while open_blocks:
        rows = open_blocks.pop()
        own = positions_n[rows] + 1
        n, whole = len(own), len(own) * int(own.max())
        if n > 1 and whole - int(own.sum()) >= _SPLIT:
            first = np.arange(1, n) * np.maximum.accumulate(own)[:-1]  # entries read by the first 1 .. n-1 rows
            rest = np.arange(n - 1, 0, -1) * np.maximum.accumulate(own[::-1])[-2::-1]
            at = int((first + rest).argmin())
            if whole - int(first[at] + rest[at]) >= _SPLIT:
                middle = rows.start + at + 1
                open_blocks += [slice(middle, rows.stop), slice(rows.start, middle)]
                continue
        blocks.append(rows)
    return blocks


def entries_read(positions_n: np.ndarray) -> int:
    """Return how many keys (and as many values) a decode step of these rows reads, in every layer and KV head."""
    return sum((rows.stop - rows.start) * int(positions_n[rows].max() + 1) for rows in row_blocks(positions_n))


class _Write:
    """Writes one new key and value for each of `n` rows into the flat buffers."""

    def __init__(self, n: int, kv_heads: int, dim: int, capacity: int) -> None:
        self.size = (n, capacity)
        pair = torch.arange(n * kv_heads).view(n, kv_heads)
        self._value_rows = pair * capacity
        self._key_entries = (pair[:, :, None] * dim + torch.arange(dim)).view(n, -1) * capacity

    def places(self, at_n: Tensor) -> tuple[Tensor, Tensor]:
        """Return the entries of the keys and the rows of the values at these positions."""
        at_n1 = at_n[:, None]
        return (self._key_entries + at_n1).view(-1), (self._value_rows + at_n1).view(-1)

    def __call__(self, keys: Tensor, values: Tensor, k: Tensor, v: Tensor, entries: Tensor, rows: Tensor) -> None:
        keys.view(-1).index_copy_(0, entries, k.reshape(-1))
        values.view(-1, v.shape[-1]).index_copy_(0, rows, v.flatten(0, 1))


def _rotated(x_nhD: Tensor, cos_n1D: Tensor, sin_n1D: Tensor) -> Tensor:
    """Rotary position embedding as in transformers' `rotate_half`; the sines have the sign of each half."""
    return torch.addcmul(x_nhD * cos_n1D, x_nhD.roll(x_nhD.shape[-1] // 2, -1), sin_n1D)


def _joined(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        qkv=_Linear(attention.q_proj, attention.k_proj, attention.v_proj, norm=layer.input_layernorm.weight),
        head_norms=(attention.q_norm.weight, attention.k_norm.weight) if hasattr(attention, "q_norm") else None,
        out=_Linear(attention.o_proj),
        gate_up=_Linear(mlp.gate_proj, mlp.up_proj, norm=layer.post_attention_layernorm.weight),
        down=_Linear(mlp.down_proj),
    )


def _view_into_one(parameters: Sequence[Tensor]) -> Tensor:
    """Join parameters in one tensor, [sum of lengths, ...]; each becomes a view of it."""
    if len(parameters) == 1:
        return parameters[0]
    whole = torch.cat([parameter.detach() for parameter in parameters])
    for parameter, part in zip(parameters, torch.split(whole, [len(p) for p in parameters]), strict=True):
        parameter.data = part
    return whole
