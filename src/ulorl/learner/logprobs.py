"""Log-probs and entropies from hidden states, without a [tokens x vocabulary] tensor.

Logits exist for one chunk of tokens at a time and are recomputed in the backward pass, so memory grows with
tokens x hidden. This is one `autograd.Function`, not checkpointed chunks: the gradient of the head's weight is added up
in place, where checkpointing makes a new [V, H] tensor a chunk, and tokens without gradient (masked, clipped, in a
group without advantage) cost nothing backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK_LOGITS = 2**25  # logits of one chunk when `chunk_tokens` is not given: 128 MiB in float32


@dataclass(frozen=True, eq=False)
class Head:
    """A model's last layer: logits = cap(scale * (weight @ hidden + bias)), cap(x) = softcap * tanh(x / softcap)."""

    weight_VH: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None  # Gemma 2's final_logit_softcapping
    scale: float = 1.0  # Cohere's logit_scale, 1 / Granite's logits_scaling

    @torch.no_grad()
    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Logits [N, V] of a few hidden states [N, H] at temperature 1, at least float32, without gradient."""
        return _Projection(self, hidden_NH.dtype, 1.0)(hidden_NH)


def token_logprobs(
    hidden_NH: Tensor, head: Head, targets_N: Tensor, temperature: float, *, chunk_tokens: int | None = None
) -> tuple[Tensor, Tensor]:
    """Each target's log-prob under softmax(logits / temperature), and that distribution's entropy.

    Gradients reach `hidden_NH` and the head's weight and bias, from the log-probs only.

    Args:
        hidden_NH: final hidden states, each at the position before its target [N, H].
        head: the model's last layer.
        targets_N: token ids, int64 [N].
        temperature: above 0.
        chunk_tokens: tokens whose logits exist at once; None: as many as make `CHUNK_LOGITS`.

    Returns:
        log-probs [N] with gradient, and entropies in nats over the full vocabulary [N], detached; both float32
        (float64 for float64 inputs). bf16 inputs are multiplied with float32 accumulation into float32 logits.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, found {temperature}")
    if hidden_NH.shape[:-1] != targets_N.shape:
        raise ValueError(f"{len(hidden_NH)} hidden states for {len(targets_N)} targets; one each is needed")
    chunk = chunk_tokens or max(1, CHUNK_LOGITS // len(head.weight_VH))
    logprobs_N, entropy_N = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden_NH, head.weight_VH, head.bias_V, targets_N, head.softcap, head.scale, temperature, chunk
    )
    return logprobs_N, entropy_N


class _Projection:
    """Hidden states to logits / temperature, and back for gradients, for one chunk of tokens after another."""

    def __init__(self, head: Head, hidden_dtype: torch.dtype, temperature: float) -> None:
        weight_VH = head.weight_VH
        self.dtype = torch.promote_types(hidden_dtype, torch.float32)  # of logits and gradients
        # Only CUDA multiplies bf16 into float32; elsewhere the operands are made float32 first, once a call.
        self.mixed = weight_VH.is_cuda and weight_VH.dtype == hidden_dtype != self.dtype
        self.operand = hidden_dtype if self.mixed else self.dtype
        self.weight_VH = weight_VH.to(self.operand)
        self.bias_V = None if head.bias_V is None else head.bias_V.to(self.dtype)
        self.softcap = head.softcap
        self.temperature = temperature
        self.factor = head.scale / (temperature if head.softcap is None else head.softcap)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = a.to(self.operand), b.to(self.operand)
        with torch.autocast(a.device.type, enabled=False):
            return torch.mm(a, b, out_dtype=self.dtype) if self.mixed else torch.mm(a, b)

    def add_matmul(self, total: Tensor, a: Tensor, b: Tensor) -> None:
        """total += a @ b, without a second tensor of its size where the product is not a mixed one."""
        if self.mixed:
            total += self.matmul(a, b)
        else:
            total.addmm_(a, b.to(self.operand))

    def __call__(self, hidden_CH: Tensor) -> Tensor:
        z_CV = self.matmul(hidden_CH, self.weight_VH.T)
        if self.bias_V is not None:
            z_CV += self.bias_V
        if self.factor != 1:
            z_CV *= self.factor
        return z_CV if self.softcap is None else z_CV.tanh_().mul_(self.softcap / self.temperature)

    def gradient(self, hidden_CH: Tensor, targets_C: Tensor, lse_C: Tensor, grad_C: Tensor) -> Tensor:
        """Gradient to weight @ hidden + bias [C, V]: grad * (onehot(target) - softmax(z)) * dz / d(weight @ hidden)."""
        z_CV = self(hidden_CH)
        slope_CV: Tensor | float = self.factor
        if self.softcap is not None:  # d cap(x) / dx = 1 - tanh(x / softcap)^2
            slope_CV = (1 - (z_CV * (self.temperature / self.softcap)).square_()).mul_(
                self.factor * self.softcap / self.temperature
            )
        grad_CV = z_CV.sub_(lse_C[:, None]).exp_().mul_(-grad_C[:, None])
        grad_CV.scatter_add_(1, targets_C[:, None], grad_C[:, None])
        return grad_CV.mul_(slope_CV)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        softcap: float | None,
        scale: float,
        temperature: float,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        projection = _Projection(Head(weight_VH, bias_V, softcap, scale), hidden_NH.dtype, temperature)
        logprobs_N = torch.empty(len(targets_N), dtype=projection.dtype, device=hidden_NH.device)
        entropy_N, lse_N = torch.empty_like(logprobs_N), torch.empty_like(logprobs_N)
        for start in range(0, len(targets_N), chunk):
            rows = slice(start, start + chunk)
            z_CV = projection(hidden_NH[rows])
            top_C1 = z_CV.amax(1, keepdim=True)
            z_CV -= top_C1
            picked_C = z_CV.gather(1, targets_N[rows, None]).squeeze(1)
            weights_CV = z_CV.exp()
            sum_C = weights_CV.sum(1)
            logsum_C = sum_C.log()
            logprobs_N[rows] = picked_C - logsum_C
            lse_N[rows] = logsum_C + top_C1.squeeze(1)
            # H = -sum p log p = log sum e^z - sum e^z z / sum e^z, with z shifted by its maximum
            entropy_N[rows] = logsum_C - weights_CV.mul_(z_CV).sum(1) / sum_C
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, targets_N, lse_N)
        ctx.settings = (softcap, scale, temperature, chunk)
        ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_N: Tensor, _entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, bias_V, targets_N, lse_N = ctx.saved_tensors
        softcap, scale, temperature, chunk = ctx.settings
        to_hidden, to_weight, to_bias = ctx.needs_input_grad[:3]
        projection = _Projection(Head(weight_VH, bias_V, softcap, scale), hidden_NH.dtype, temperature)
        grad_NH = torch.zeros_like(hidden_NH) if to_hidden else None
        grad_VH = torch.zeros_like(weight_VH, dtype=projection.dtype) if to_weight else None
        grad_V = torch.zeros_like(bias_V, dtype=projection.dtype) if to_bias else None
        for rows in torch.split(grad_N.nonzero().squeeze(1), chunk):
            hidden_CH = hidden_NH[rows]
            grad_CV = projection.gradient(hidden_CH, targets_N[rows], lse_N[rows], grad_N[rows])
            if grad_NH is not None:
                grad_NH[rows] = projection.matmul(grad_CV, projection.weight_VH).to(grad_NH.dtype)
            if grad_VH is not None:
                projection.add_matmul(grad_VH, grad_CV.T, hidden_CH)
            if grad_V is not None:
                grad_V += grad_CV.sum(0)
        return (
            grad_NH,
            None if grad_VH is None else grad_VH.to(weight_VH.dtype),
            None if grad_V is None else grad_V.to(bias_V.dtype),
            *(None,) * 5,
        )
