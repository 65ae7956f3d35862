"""Log-probs and entropies from hidden states, without a [tokens x vocabulary] tensor.

Logits exist for one tile (some tokens x some words) at a time, small enough to stay in a CPU's cache. The backward pass
recomputes them, so memory grows with tokens x hidden. A few logits (`KEPT`) are kept instead, which saves one of four
products. This is one `autograd.Function` and not checkpointed chunks: the gradient of the head's weight is summed tile
by tile, where checkpointing makes a new [V, H] tensor for each chunk, and tokens without gradient (masked, clipped, in
a group without advantage) cost nothing in the backward pass.

Logits are in bits (times log2 e, folded into the weight's tile), because torch's `exp2` on a CPU is 4 to 6 times as
fast as its `exp`, and over 10 times as fast where results underflow.

Shapes: N tokens of a batch, C tokens of a tile, V vocabulary, v words of a tile, H hidden; M, N, K of a plain product.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ulorl.models.cpu import linear_products
from ulorl.models.cpu.linear_products import has_onednn, onednn_product
from ulorl.models.head import Head

# Logits of one tile: 4 MiB in float32 stay in a CPU's cache and need no new pages; a GPU needs larger products.
TILE_CPU, TILE_GPU = 2**20, 2**24
KEPT = 2**25  # up to so many logits (128 MiB) are kept for the backward pass
_FEW = 256  # tokens: below, copying a tile of the weight's gradient takes longer than oneDNN saves in computing it
_NARROW = 64  # columns: below, MKL computes the transpose of a product 3 to 5 times as fast
LN2 = math.log(2)
_LEAST = -2000.0  # bits: 2 to this power is 0 in float64 too


def token_logprobs(
    hidden_NH: Tensor,
    head: Head,
    targets_N: Tensor,
    temperature: float,
    *,
    chunk_tokens: int | None = None,
    chunk_words: int | None = None,
    cpu_kernels: bool = True,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return each target's log-prob under softmax(logits / temperature), and that distribution's entropy.

    Gradients reach `hidden_NH` and the head's weight and bias, from the log-probs; from the entropies only with
    `entropy_gradient`.

    Args:
        hidden_NH: final hidden states, each at the position before its target [N, H].
        head: the model's last layer.
        targets_N: token ids, int64 [N].
        temperature: above 0.
        chunk_tokens, chunk_words: the tile of logits that exists at once; None: `TILE_CPU` or `TILE_GPU` logits.
        cpu_kernels: multiply through oneDNN where that is faster on a CPU; False: always through torch.mm.
        entropy_gradient: whether the entropies have a gradient, at the price of one more product with each tile's
            probabilities in the backward pass.

    Returns:
        log-probs [N] with gradient, and entropies in nats over the full vocabulary [N], without gradient unless asked
        for; both float32 (float64 for float64 inputs). bf16 inputs are multiplied with float32 accumulation into
        float32 logits.

    Raises:
        ValueError: a temperature not above 0, another number of targets than hidden states, or a target that is no
            word of the head.
    """
    V = len(head.weight_VH)
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, found {temperature}")
    if hidden_NH.shape[:-1] != targets_N.shape:
        raise ValueError(f"{len(hidden_NH)} hidden states for {len(targets_N)} targets; one each is needed")
    if len(targets_N) and not 0 <= int(targets_N.min()) <= int(targets_N.max()) < V:
        raise ValueError(f"targets from {targets_N.min()} to {targets_N.max()}; the head has words 0 to {V - 1}")
    tile = TILE_CPU if hidden_NH.device.type == "cpu" else TILE_GPU
    words = chunk_words or min(V, math.isqrt(tile))  # 1,024 tokens x 1,024 words on a CPU
    tokens = chunk_tokens or tile // max(words, 256)  # of a small vocabulary no more hidden states than stay in cache
    options = _Options(head.softcap, head.scale, temperature, tokens, words, cpu_kernels, entropy_gradient)
    logprobs_N, entropy_N = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden_NH, head.weight_VH, head.bias_V, targets_N, options
    )
    return logprobs_N, entropy_N


@torch.no_grad()
def head_logits(head: Head, hidden_NH: Tensor, *, cpu_kernels: bool = True) -> Tensor:
    """Return the logits [N, V] of a few hidden states [N, H], in float32 or longer, without gradient, as
    `token_logprobs` computes them."""
    projection = _Projection(head, hidden_NH, 1.0, len(hidden_NH), cpu_kernels=cpu_kernels)
    return projection.logits(projection.hidden_NH, *projection.operands(slice(None)))


class _Projection:
    """Hidden states to unit * logits and gradients back to both factors, for one tile after another."""

    def __init__(self, head: Head, hidden_NH: Tensor, unit: float, tokens: int, *, cpu_kernels: bool) -> None:
        """tokens: of a tile."""
        weight_VH, hidden_dtype = head.weight_VH, hidden_NH.dtype
        self.head = head
        self.dtype = torch.promote_types(hidden_dtype, torch.float32)  # of logits and sums
        # Only CUDA multiplies bf16 into float32; elsewhere the operands are made float32 first, tile by tile.
        self.mixed = weight_VH.is_cuda and weight_VH.dtype == hidden_dtype != self.dtype
        self.operand = hidden_dtype if self.mixed else self.dtype
        on_cpu = weight_VH.device.type == "cpu"
        self.onednn = cpu_kernels and on_cpu and self.dtype == torch.float32 and has_onednn()
        # unit * logits = inner * (weight @ hidden + bias), with a soft-cap outer * tanh(inner * (...))
        self.inner, self.outer = head.scale * unit, 1.0
        if head.softcap is not None:
            self.inner, self.outer = head.scale / head.softcap, head.softcap * unit
        # Folded into one of the factors, but for bf16 ones, which would be rounded once more. Few hidden states are
        # scaled once for all tiles: for 128 tokens, a scaled copy of the weight would take a fifth of a product's time.
        self.into_hidden = len(hidden_NH) <= min(tokens, len(weight_VH) - 1) and not self.mixed
        self.folded = 1.0 if self.mixed or self.into_hidden else self.inner  # into the weight
        self.hidden_NH = hidden_NH.to(self.dtype) * self.inner if self.into_hidden else hidden_NH

    def operands(self, words: slice) -> tuple[Tensor, Tensor | None]:
        """folded * weight [v, H] and inner * bias [v] of these words, which `logits` takes."""
        weight_vH, bias_V = self.head.weight_VH[words].to(self.operand), self.head.bias_V
        bias_v = None if bias_V is None else bias_V[words].to(self.dtype) * self.inner
        return weight_vH if self.folded == 1 else weight_vH * self.folded, bias_v

    def logits(self, hidden_CH: Tensor, weight_vH: Tensor, bias_v: Tensor | None) -> Tensor:
        """unit * logits [C, v]."""
        z_Cv = self.product(hidden_CH, weight_vH)
        if self.mixed and self.inner != 1:
            z_Cv *= self.inner
        if bias_v is not None:
            z_Cv += bias_v
        return z_Cv if self.head.softcap is None else z_Cv.tanh_().mul_(self.outer)

    def excess(self, z_Cv: Tensor, lse_C: Tensor, targets_C: Tensor, words: slice) -> Tensor:
        """softmax - onehot(target), times the soft-cap's slope 1 - tanh^2 [C, v]; overwrites the logits z, in bits."""
        slope_Cv = self._slope(z_Cv)
        columns_C1, inside_C1 = _locate(targets_C, words)
        excess_Cv = z_Cv.sub_(lse_C[:, None]).exp2_().scatter_add_(1, columns_C1, -inside_C1.to(z_Cv.dtype))
        return excess_Cv if slope_Cv is None else excess_Cv.mul_(slope_Cv)

    def entropy_excess(self, z_Cv: Tensor, lse_C: Tensor, entropy_C: Tensor) -> Tensor:
        """p (log p + H), minus the derivative of the entropy H by the logits in nats, times the soft-cap's slope [C,
        v]; z: logits in bits."""
        slope_Cv = self._slope(z_Cv)
        bits_Cv = (z_Cv - lse_C[:, None]).clamp_(min=_LEAST)
        excess_Cv = bits_Cv.exp2().mul_(bits_Cv.mul_(LN2).add_(entropy_C[:, None]))
        return excess_Cv if slope_Cv is None else excess_Cv.mul_(slope_Cv)

    def _slope(self, z_Cv: Tensor) -> Tensor | None:
        return None if self.head.softcap is None else 1 - (z_Cv / self.outer).square_()

    def product(self, a_MK: Tensor, b_NK: Tensor, out_MN: Tensor | None = None) -> Tensor:
        """a @ b.T [M, N], added up in float32 (float64 for float64), by torch.mm into `out_MN` where there is one."""
        a_MK, b_NK = a_MK.to(self.operand), b_NK.to(self.operand)
        with torch.autocast(a_MK.device.type, enabled=False):
            if out_MN is not None:
                return torch.mm(a_MK, b_NK.T, out=out_MN)
            if len(b_NK) < _NARROW and not self.mixed:
                return torch.mm(b_NK, a_MK.T).T
            if self.onednn and a_MK.numel() * len(b_NK) > linear_products.SMALL:
                return onednn_product(a_MK, b_NK)
            return torch.mm(a_MK, b_NK.T, out_dtype=self.dtype) if self.mixed else torch.mm(a_MK, b_NK.T)


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _blocks(active_N: Tensor, size: int) -> Sequence[slice | Tensor]:
    """Tokens with a gradient, at most `size` in a block."""
    active = active_N.nonzero().squeeze(1)
    if len(active) == len(active_N):  # slices are views, indices copies
        return list(_slices(len(active_N), size))
    return torch.split(active, size) if len(active) else ()


def _locate(targets_C: Tensor, words: slice) -> tuple[Tensor, Tensor]:
    """Each target's column in the tile of these words, or any column, and whether it is in the tile, both [C, 1]."""
    columns_C1 = (targets_C - words.start)[:, None]
    last = words.stop - words.start - 1
    return columns_C1.clamp(0, last), (columns_C1 >= 0) & (columns_C1 <= last)


def _plus(total: Tensor | None, term: Tensor) -> Tensor:
    return term if total is None else total.add_(term)


class _Sums:
    """Log-sum-exp and entropy of every token's logits z, in bits, accumulated over tiles as flash attention does."""

    def __init__(self, tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        self.top_N = torch.full((tokens,), torch.finfo(dtype).min / 4, dtype=dtype, device=device)  # largest z so far
        self.mass_N = torch.zeros_like(self.top_N)  # sum of 2^(z - top)
        self.moment_N = torch.zeros_like(self.top_N)  # sum of (z - top) 2^(z - top)
        self.target_N = torch.zeros_like(self.top_N)  # z of the target

    def add(self, z_Cv: Tensor, rows: slice, targets_C: Tensor, words: slice) -> None:
        """Add a tile of logits, which is overwritten."""
        columns_C1, inside_C1 = _locate(targets_C, words)
        self.target_N[rows] += z_Cv.gather(1, columns_C1).where(inside_C1, 0).squeeze(1)
        top_C = torch.maximum(self.top_N[rows], z_Cv.amax(1))
        # Far below the top 2^z is 0; there z may be -inf (a masked word), and 0 x -inf is no number.
        fall_C = (self.top_N[rows] - top_C).clamp_(min=_LEAST)  # moves the sums so far to the new top
        kept_C = fall_C.exp2()
        weights_Cv = z_Cv.sub_(top_C[:, None]).clamp_(min=_LEAST).exp2()
        mass_C, moment_C = weights_Cv.sum(1), weights_Cv.mul_(z_Cv).sum(1)
        self.moment_N[rows] = moment_C + kept_C * (self.moment_N[rows] + fall_C * self.mass_N[rows])
        self.mass_N[rows] = mass_C + kept_C * self.mass_N[rows]
        self.top_N[rows] = top_C

    def results(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probs and entropies in nats, log-sum-exp in bits, [N] each."""
        log_mass_N = self.mass_N.log2()
        # H = -sum p log p = log sum e^z - sum e^z z / sum e^z, with z shifted by its maximum
        entropy_N = (log_mass_N - self.moment_N / self.mass_N) * LN2
        return (self.target_N - self.top_N - log_mass_N) * LN2, entropy_N, self.top_N + log_mass_N


@dataclass(frozen=True)
class _Options:
    """All that is no tensor. `tokens` x `words` is the size of a tile."""

    softcap: float | None
    scale: float
    temperature: float
    tokens: int
    words: int
    cpu_kernels: bool
    entropy_gradient: bool

    def projection(self, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> _Projection:
        """To logits in bits."""
        head, unit = Head(weight_VH, bias_V, self.softcap, self.scale), 1 / (LN2 * self.temperature)
        return _Projection(head, hidden_NH, unit, self.tokens, cpu_kernels=self.cpu_kernels)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, targets_N: Tensor, options: _Options
    ) -> tuple[Tensor, Tensor]:
        projection = options.projection(hidden_NH, weight_VH, bias_V)
        sums = _Sums(len(targets_N), projection.dtype, hidden_NH.device)
        one_block = len(targets_N) <= options.tokens
        few = one_block and len(targets_N) * len(weight_VH) <= KEPT and any(ctx.needs_input_grad)
        kept: list[Tensor] = []  # logits [N, v] of each tile
        for words in _slices(len(weight_VH), options.words):
            operands = projection.operands(words)
            for rows in _slices(len(targets_N), options.tokens):
                z_Cv = projection.logits(projection.hidden_NH[rows], *operands)
                if few:
                    kept.append(z_Cv.clone())
                sums.add(z_Cv, rows, targets_N[rows], words)
        logprobs_N, entropy_N, lse_N = sums.results()
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, targets_N, lse_N, entropy_N, *kept)
        ctx.options = options
        if not options.entropy_gradient:
            ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_N: Tensor, to_entropy_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, bias_V, targets_N, lse_N, entropy_N, *kept = ctx.saved_tensors
        options: _Options = ctx.options
        to_hidden, to_weight, to_bias = ctx.needs_input_grad[:3]
        projection = options.projection(hidden_NH, weight_VH, bias_V)
        # d log-prob / d (weight @ hidden + bias) = this * excess
        grad_N = grad_N * (-options.scale / options.temperature)
        to_entropy_N = to_entropy_N * (-options.scale / options.temperature)
        of_entropy = bool(to_entropy_N.any())  # False without options.entropy_gradient, and where a bonus is 0
        blocks = _blocks((grad_N != 0) | (to_entropy_N != 0), options.tokens)
        to_blocks: list[Tensor | None] = [None] * len(blocks)
        grad_VH = (torch.empty_like if blocks else torch.zeros_like)(weight_VH) if to_weight else None
        grad_V = torch.zeros_like(bias_V, dtype=projection.dtype) if to_bias else None
        direct = len(blocks) == 1 and len(grad_N) <= _FEW and weight_VH.dtype == projection.dtype
        for index, words in enumerate(_slices(len(weight_VH), options.words)):
            weight_vH, bias_v = projection.operands(words)
            grad_vH: Tensor | None = None
            for i, rows in enumerate(blocks):
                if not kept:
                    z_Cv = projection.logits(projection.hidden_NH[rows], weight_vH, bias_v)
                else:  # a copy, because a retained graph comes here again
                    z_Cv = kept[index][rows].clone() if isinstance(rows, slice) else kept[index][rows]
                entropy_Cv: Tensor | None = None
                if of_entropy:  # first: `excess` overwrites z
                    entropy_Cv = projection.entropy_excess(z_Cv, lse_N[rows], entropy_N[rows])
                grad_Cv = projection.excess(z_Cv, lse_N[rows], targets_N[rows], words).mul_(grad_N[rows, None])
                if entropy_Cv is not None:
                    grad_Cv.addcmul_(entropy_Cv, to_entropy_N[rows, None])
                if to_hidden:
                    to_blocks[i] = _plus(to_blocks[i], projection.product(grad_Cv, weight_vH.T))
                if grad_VH is not None:
                    out_vH = grad_VH[words] if direct else None
                    grad_vH = _plus(grad_vH, projection.product(grad_Cv.T, hidden_NH[rows].T, out_vH))
                if grad_V is not None:
                    grad_V[words] += grad_Cv.sum(0)
            if grad_VH is not None and grad_vH is not None and not direct:
                grad_VH[words] = grad_vH
        grad_NH = torch.zeros_like(hidden_NH) if to_hidden else None
        for rows, grad_CH in zip(blocks, to_blocks, strict=True):
            if grad_NH is not None and grad_CH is not None:
                grad_NH[rows] = grad_CH.div_(projection.folded).to(grad_NH.dtype)
        return grad_NH, grad_VH, None if grad_V is None else grad_V.to(bias_V.dtype), None, None
