"""Bytes of activations: of one decoder layer, and of the last norm and the head.

The formulas are those of transformers' Qwen3 and Qwen3-MoE layers with sdpa or flash-attention, and the tests compare
them with the tensors that autograd really saves. Layers of other families are similar: their norms, projections and MLP
save the same tensors.

Letters: H hidden, A = query heads x head dimension, K = key-value heads x head dimension, F width of the MLP or of one
expert, k active experts, V vocabulary; `e` is the bytes of one number in products, `x` of one in the residual stream.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ulorl.learner.logprobs import KEPT, TILE_CPU, TILE_GPU
from ulorl.planning.model_sizes import ModelSizes

FLOAT = 4  # bytes


@dataclass(frozen=True)
class Precision:
    """Bytes of one number: master (weights that AdamW steps, their gradients and moments), product (in the matrix
    products of a layer), stream (between the layers), reduced (of gradients that ranks add up)."""

    master: int
    product: int
    stream: int
    reduced: int


def precision_of(dtype: str, *, autocast: bool, sharded: bool) -> Precision:
    """Return the bytes of numbers for `model.dtype`, `optim.autocast` and one process or several.

    Sharded weights are gathered in the dtype of the products, so the residual stream has that dtype too. In one process
    torch.autocast keeps a float32 residual stream.
    """
    if dtype == "bfloat16":
        return Precision(2, 2, 2, FLOAT)
    if not autocast:
        return Precision(FLOAT, FLOAT, FLOAT, FLOAT)
    return Precision(FLOAT, 2, 2 if sharded else FLOAT, FLOAT)


def saved_bytes(sizes: ModelSizes, precision: Precision, sequence: int = 1, *, cpu: bool = True) -> int:
    """Return the bytes that autograd saves in one layer for each token of a process, without the layer's input.

    sequence: the processes that share each sequence. With Ulysses each of them holds at least one key-value head, and
    attention's output exists in both layouts. cpu: on a GPU, attention in float32 saves keys and values of every query
    head (`repeated_sdpa`), unless the process has one key-value head, which needs no copies.
    """
    e, H, norms = precision.product, sizes.hidden, _norm_bytes(precision)
    A, K = sizes.query_heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    attended = max(sizes.kv_heads, sequence) * sizes.head_dim
    if e == FLOAT and not cpu and sizes.kv_heads > sequence:
        attended = A
    saved = norms * H + 2 * FLOAT
    saved += e * (2 * A + 2 * attended) + FLOAT * sizes.query_heads  # sdpa: q, k, v, its output, log-sum-exp
    if sequence > 1:
        saved += e * A
    if sizes.qk_norm:  # float32 input of the norm and its result; for float32 the input is the product itself
        saved += (2 * FLOAT if e == FLOAT else FLOAT + e) * (A + K) + FLOAT * (sizes.query_heads + sizes.kv_heads)
    if not sizes.experts:
        return saved + e * 4 * sizes.intermediate  # gate, up, silu(gate), their product
    k, inside = sizes.active, _expert_bytes(precision)
    # grouped products: gathered tokens, gate and up, silu, product, output; the router; indices and weights
    saved += inside * k * (2 * H + 4 * sizes.intermediate) + FLOAT * sizes.experts + FLOAT
    return saved + k * (8 + FLOAT + 3 * 8 + inside)


def transient_bytes(sizes: ModelSizes, precision: Precision) -> int:
    """Return the bytes for each token that the backward pass of a layer takes at its peak beyond those that are saved.

    Dense: the gradients of two of the MLP's products. Experts: outputs weighted and put back into order, and the
    gradient of the outputs, each active x H; or the former with less of the latter where F is larger.
    """
    if not sizes.experts:
        return 2 * precision.product * sizes.intermediate
    outputs, inner = sizes.active * sizes.hidden, sizes.active * sizes.intermediate
    return _expert_bytes(precision) * max(3 * outputs, 2 * inner - outputs)


@dataclass(frozen=True)
class HeadBytes:
    """Bytes that the last norm and `token_logprobs` hold, in the forward and in the backward pass."""

    forward: int
    backward: int


def head_bytes(sizes: ModelSizes, precision: Precision, tokens: int, outputs: int, *, cpu: bool) -> HeadBytes:
    """Return the bytes of last norm and head for `tokens` tokens, `outputs` of them output tokens: no [tokens x
    vocabulary] tensor exists.

    The norm keeps its float32 input and its result, tokens x H. The head keeps hidden states, outputs x H; its backward
    pass adds float32 sums of their gradients, and these in the hidden states' dtype. A tile of logits exists twice,
    and its weights and their gradient are words x H in float32; of few tokens all logits are kept.
    """
    V, H = sizes.vocabulary, sizes.hidden
    tile = TILE_CPU if cpu else TILE_GPU
    words = min(V, math.isqrt(tile))
    rows = tile // max(words, 256)
    kept = FLOAT * outputs * V if outputs <= rows and outputs * V <= KEPT else 0
    saved = (FLOAT + precision.stream) * H * tokens + precision.product * H * outputs
    forward = saved + kept + FLOAT * (2 * min(outputs, rows) * words + words * H)
    backward = saved + kept + (FLOAT + precision.product) * H * outputs
    return HeadBytes(forward, backward + FLOAT * (2 * min(outputs, rows) * words + 3 * words * H))


def _norm_bytes(precision: Precision) -> int:
    """Return the bytes for each hidden number that the two norms of a layer and the products after them save."""
    if precision.product == FLOAT:  # normalised and scaled, twice; the second input, which is no layer's input
        return 2 * (FLOAT + FLOAT) + FLOAT
    if precision.stream == FLOAT:  # autocast: each of the products q, k, v, gate and up makes its own bfloat16 copy
        return 2 * FLOAT + FLOAT + 5 * 2
    return 2 * (FLOAT + 2 + 2)  # float32 input, normalised, scaled


def _expert_bytes(precision: Precision) -> int:
    """Return the bytes of one number inside the experts; torch.autocast leaves grouped products in float32."""
    return precision.stream
