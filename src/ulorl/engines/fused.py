"""One decode step of the Llama and Qwen families on a CPU, with few and large operations.

transformers' own forward spends most of a small model's decode step on some sixty small operations a layer, and on an
attention kernel made for many queries. Here the three input projections are one product, the two of the MLP are one,
and attention is two batched products over keys that lie transposed in their slots. Rows are attended in blocks that
read no more entries than their own longest row needs.

The parameters stay the model's: each becomes a view into the joined matrix. Where torch has oneDNN, it multiplies with
a packed copy of it: twice as fast as `torch.mm` on processors that MKL does not favour, for twice the memory. `refresh`
packs anew, after the parameters have changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel, Qwen2ForCausalLM, Qwen3ForCausalLM

from ulorl.engines.kv import SlotCache

_FAMILIES = (LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
_BLOCK = 32  # rows of one attention call, when rows differ in length
_READ_ROUND = 16  # entries read are a multiple of this


def can_fuse(model: PreTrainedModel) -> bool:
    """Dense Llama, Qwen2 or Qwen3 in float32 on a CPU; what the model's configuration changes beyond that is found by
    the engine's comparison with the model's own forward."""
    return (
        type(model) in _FAMILIES
        and model.device.type == "cpu"
        and model.dtype == torch.float32
        and model.config.hidden_act == "silu"
    )


class _Linear:
    """One or several linear layers over the same input as one product, [n, in] to [n, sum of outs]."""

    def __init__(self, *linears: torch.nn.Linear) -> None:
        biases = [linear.bias for linear in linears if linear.bias is not None]
        self._weight = _view_into_one([linear.weight for linear in linears])
        self._bias = _view_into_one(biases) if biases else None
        self._packed: Tensor | None = None

    def pack(self, rows: int) -> None:
        """For products of about `rows` rows."""
        if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self._weight, rows)

    def __call__(self, x: Tensor) -> Tensor:
        if self._packed is None:
            return F.linear(x, self._weight, self._bias)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")
        return product


@dataclass(frozen=True)
class _Layer:
    """What a decode step needs of one layer."""

    input_norm: Tensor
    qkv: _Linear
    head_norms: tuple[Tensor, Tensor] | None  # Qwen3: of queries and keys, [D] each
    out: _Linear
    mlp_norm: Tensor
    gate_up: _Linear
    down: _Linear


class FusedDecoder:
    """Decodes one token for rows 0..n-1 of `cache`, whose keys must be transposed."""

    def __init__(self, model: PreTrainedModel, cache: SlotCache, rows: int) -> None:
        """rows: of a full decode step."""
        config = model.config
        self._cache, self._rows = cache, rows
        self._core = model.model
        self._head = _Linear(model.lm_head)
        self._eps: float = config.rms_norm_eps
        self._heads: int = config.num_attention_heads
        self._kv_heads: int = config.num_key_value_heads
        self._dim: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._layers = [_joined(layer) for layer in model.model.layers]
        self.refresh()

    def refresh(self) -> None:
        """Take the parameters as they are now."""
        for layer in self._layers:
            for linear in (layer.qkv, layer.out, layer.gate_up, layer.down):
                linear.pack(self._rows)
        self._head.pack(self._rows)

    def __call__(self, tokens_n: np.ndarray, positions_n: np.ndarray) -> Tensor:
        """Logits after each row's token at its position, [n, V]. Writes keys and values."""
        at_n = torch.from_numpy(positions_n)
        hidden_nH = F.embedding(torch.from_numpy(tokens_n), self._core.embed_tokens.weight)
        cos_n1D, sin_n1D = self._core.rotary_emb(hidden_nH, at_n[:, None])
        blocks = [self._block(rows, positions_n) for rows in self._row_blocks(positions_n)]
        write = _Write(len(at_n), self._kv_heads, self._dim, self._cache.capacity, at_n)
        for index, layer in enumerate(self._layers):
            normed_nH = F.rms_norm(hidden_nH, hidden_nH.shape[1:], layer.input_norm, self._eps)
            qkv = layer.qkv(normed_nH).view(len(at_n), -1, self._dim)
            q, k, v = torch.split(qkv, [self._heads, self._kv_heads, self._kv_heads], dim=1)
            if layer.head_norms:
                q = F.rms_norm(q, (self._dim,), layer.head_norms[0], self._eps)
                k = F.rms_norm(k, (self._dim,), layer.head_norms[1], self._eps)
            q, k = _rotated(q, cos_n1D, sin_n1D), _rotated(k, cos_n1D, sin_n1D)
            keys, values = self._cache.buffers(index, like=v)
            write(keys, values, k, v)
            attended = torch.cat([self._attend(q, keys, values, *block) for block in blocks])
            hidden_nH = hidden_nH + layer.out(attended)
            normed_nH = F.rms_norm(hidden_nH, hidden_nH.shape[1:], layer.mlp_norm, self._eps)
            gate, up = layer.gate_up(normed_nH).chunk(2, dim=-1)
            hidden_nH = hidden_nH + layer.down(F.silu(gate).mul_(up))
        hidden_nH = F.rms_norm(hidden_nH, hidden_nH.shape[1:], self._core.norm.weight, self._eps)
        return self._head(hidden_nH)

    def _row_blocks(self, positions_n: np.ndarray) -> Iterator[slice]:
        """One block when rows are of about one length, else blocks of `_BLOCK` rows."""
        n = len(positions_n)
        size = _BLOCK if positions_n.max() + 1 > 1.2 * (positions_n.mean() + 1) else n
        yield from (slice(start, min(n, start + size)) for start in range(0, n, size))

    def _block(self, rows: slice, positions_n: np.ndarray) -> tuple[slice, int, Tensor]:
        """Rows, entries they read, and 0 or -inf for each of them, [rows x KV heads, 1, entries]."""
        own = torch.from_numpy(positions_n[rows])
        length = min(-(-(int(own.max()) + 1) // _READ_ROUND) * _READ_ROUND, self._cache.capacity)
        later = torch.arange(length) > own[:, None]
        mask = torch.zeros(later.shape).masked_fill_(later, float("-inf"))
        return rows, length, mask.repeat_interleave(self._kv_heads, dim=0)[:, None]

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, rows: slice, length: int, mask: Tensor) -> Tensor:
        """Attention of a block's rows, [rows, heads x D]."""
        pairs = slice(rows.start * self._kv_heads, rows.stop * self._kv_heads)
        queries = q[rows].reshape(-1, self._heads // self._kv_heads, self._dim)
        scores = torch.baddbmm(mask, queries, keys.flatten(0, 1)[pairs, :, :length], alpha=self._dim**-0.5)
        attended = torch.bmm(scores.softmax(-1), values.flatten(0, 1)[pairs, :length])
        return attended.view(rows.stop - rows.start, -1)


class _Write:
    """Puts one new key and value a row into the flat buffers."""

    def __init__(self, n: int, kv_heads: int, dim: int, capacity: int, at_n: Tensor) -> None:
        pair = torch.arange(n * kv_heads).view(n, kv_heads)
        self.value_rows = (pair * capacity + at_n[:, None]).flatten()
        self.key_entries = ((pair[:, :, None] * dim + torch.arange(dim)) * capacity + at_n[:, None, None]).flatten()

    def __call__(self, keys: Tensor, values: Tensor, k: Tensor, v: Tensor) -> None:
        keys.view(-1).index_copy_(0, self.key_entries, k.flatten())
        values.view(-1, v.shape[-1]).index_copy_(0, self.value_rows, v.flatten(0, 1))


def _rotated(x_nhD: Tensor, cos_n1D: Tensor, sin_n1D: Tensor) -> Tensor:
    """Rotary position embedding, halves as transformers' `rotate_half` has them."""
    first, second = x_nhD.chunk(2, dim=-1)
    return torch.addcmul(x_nhD * cos_n1D, torch.cat([-second, first], dim=-1), sin_n1D)


def _joined(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        input_norm=layer.input_layernorm.weight,
        qkv=_Linear(attention.q_proj, attention.k_proj, attention.v_proj),
        head_norms=(attention.q_norm.weight, attention.k_norm.weight) if hasattr(attention, "q_norm") else None,
        out=_Linear(attention.o_proj),
        mlp_norm=layer.post_attention_layernorm.weight,
        gate_up=_Linear(mlp.gate_proj, mlp.up_proj),
        down=_Linear(mlp.down_proj),
    )


def _view_into_one(parameters: Sequence[Tensor]) -> Tensor:
    """All of them in one tensor, [sum of lengths, ...], of which each becomes a view."""
    if len(parameters) == 1:
        return parameters[0]
    whole = torch.cat([parameter.detach() for parameter in parameters])
    for parameter, part in zip(parameters, torch.split(whole, [len(p) for p in parameters]), strict=True):
        parameter.data = part
    return whole
