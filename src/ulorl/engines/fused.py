"""One decode step of the Llama and Qwen families on a CPU, with few and large operations.

transformers' own forward spends most of a small model's decode step on some sixty small operations a layer, and on an
attention kernel made for many queries. Here the three input projections are one product, the two of the MLP are one,
and attention is two batched products over keys that lie transposed in their slots. Rows are attended in blocks that
read no more entries than their own longest row needs.

The parameters stay the model's: each becomes a view into the joined matrix, so loading weights needs to know nothing.
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


@dataclass(frozen=True)
class _Layer:
    """What a decode step needs of one layer; matrices are [out, in]."""

    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    head_norms: tuple[Tensor, Tensor] | None  # Qwen3: of queries and keys, [D] each
    out: Tensor
    out_bias: Tensor | None
    mlp_norm: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


class FusedDecoder:
    """Decodes one token for rows 0..n-1 of `cache`, whose keys must be transposed."""

    def __init__(self, model: PreTrainedModel, cache: SlotCache) -> None:
        config = model.config
        self._cache = cache
        self._core = model.model
        self._head = model.lm_head
        self._eps: float = config.rms_norm_eps
        self._heads: int = config.num_attention_heads
        self._kv_heads: int = config.num_key_value_heads
        self._dim: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._layers = [_joined(layer) for layer in model.model.layers]

    def __call__(self, tokens_n: np.ndarray, positions_n: np.ndarray) -> Tensor:
        """Logits after each row's token at its position, [n, V]. Writes keys and values."""
        at_n = torch.from_numpy(positions_n)
        hidden_nH = F.embedding(torch.from_numpy(tokens_n), self._core.embed_tokens.weight)
        cos_n1D, sin_n1D = self._core.rotary_emb(hidden_nH, at_n[:, None])
        blocks = [self._block(rows, positions_n) for rows in self._row_blocks(positions_n)]
        write = _Write(len(at_n), self._kv_heads, self._dim, self._cache.capacity, at_n)
        for index, layer in enumerate(self._layers):
            normed_nH = F.rms_norm(hidden_nH, hidden_nH.shape[1:], layer.input_norm, self._eps)
            qkv = F.linear(normed_nH, layer.qkv, layer.qkv_bias).view(len(at_n), -1, self._dim)
            q, k, v = torch.split(qkv, [self._heads, self._kv_heads, self._kv_heads], dim=1)
            if layer.head_norms:
                q = F.rms_norm(q, (self._dim,), layer.head_norms[0], self._eps)
                k = F.rms_norm(k, (self._dim,), layer.head_norms[1], self._eps)
            q, k = _rotated(q, cos_n1D, sin_n1D), _rotated(k, cos_n1D, sin_n1D)
            keys, values = self._cache.buffers(index, like=v)
            write(keys, values, k, v)
            attended = torch.cat([self._attend(q, keys, values, *block) for block in blocks])
            hidden_nH = hidden_nH + F.linear(attended, layer.out, layer.out_bias)
            normed_nH = F.rms_norm(hidden_nH, hidden_nH.shape[1:], layer.mlp_norm, self._eps)
            gate, up = F.linear(normed_nH, layer.gate_up, layer.gate_up_bias).chunk(2, dim=-1)
            hidden_nH = hidden_nH + F.linear(F.silu(gate).mul_(up), layer.down, layer.down_bias)
        hidden_nH = F.rms_norm(hidden_nH, hidden_nH.shape[1:], self._core.norm.weight, self._eps)
        logits: Tensor = self._head(hidden_nH)
        return logits

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
    qkv, qkv_bias = _join(attention.q_proj, attention.k_proj, attention.v_proj)
    gate_up, gate_up_bias = _join(mlp.gate_proj, mlp.up_proj)
    norms = (attention.q_norm.weight, attention.k_norm.weight) if hasattr(attention, "q_norm") else None
    return _Layer(
        layer.input_layernorm.weight, qkv, qkv_bias, norms, attention.o_proj.weight, attention.o_proj.bias,
        layer.post_attention_layernorm.weight, gate_up, gate_up_bias, mlp.down_proj.weight, mlp.down_proj.bias,
    )  # fmt: skip


def _join(*linears: torch.nn.Linear) -> tuple[Tensor, Tensor | None]:
    """One matrix (and bias) of several; the modules' parameters become views into it."""
    biases = [linear.bias for linear in linears if linear.bias is not None]
    return _view_into_one([linear.weight for linear in linears]), _view_into_one(biases) if biases else None


def _view_into_one(parameters: Sequence[Tensor]) -> Tensor:
    whole = torch.cat([parameter.detach() for parameter in parameters])
    for parameter, part in zip(parameters, torch.split(whole, [len(p) for p in parameters]), strict=True):
        parameter.data = part
    return whole
