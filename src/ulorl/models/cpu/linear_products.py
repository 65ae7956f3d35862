"""Matrix products in float32 on a CPU through oneDNN, where that is faster.

There `torch.mm` uses MKL, which on AMD takes as long as oneDNN up to twice as long, depending on processor and size.
torch has oneDNN as a private operator only. Where it is absent, and for other dtypes and devices, torch's own products
are used.

Shapes: M, N, K of a product [M, K] x [N, K] -> [M, N].
"""

from __future__ import annotations

import os
import platform
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

_LARGE = 2**18  # entries of a matrix, in float32 as large as a core's cache
# oneDNN makes a kernel for each shape of a product and keeps the last 1,024. An engine of 256 rows needs a few for each
# number of rows, and more for prefills: with 1,024 it makes them again and again.
_CACHE_VARIABLE, _KERNELS = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", 4096
SMALL = 2**24  # multiplications: torch.mm finishes smaller products before oneDNN has made a kernel for their shape


@cache
def has_onednn() -> bool:
    """Return whether this torch has oneDNN and its private operator."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]


@cache
def has_bfloat16() -> bool:
    """Return whether oneDNN multiplies bfloat16 matrices natively here (AVX-512 or AMX), not element by element."""
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):  # type: ignore[no-untyped-call]
        return False
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    # oneDNN says that it supports bfloat16 on every processor with AVX-512, but without AVX512-BF16 or AMX it converts,
    # and takes 2.4 to 4 times as long as in float32 (docs/experiments.md).
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def small_packed_product(entries: int) -> int:
    """Return the number of multiplications up to which torch.mm is faster than oneDNN with a packed matrix of so many
    entries.

    oneDNN's AVX-512 kernels are as fast as MKL from 2^20 multiplications on. Its AVX2 kernels are with a matrix that is
    read from memory, from two rows on; with one that stays in a core's cache only above 2^24 multiplications
    (docs/experiments.md). The processor decides and never a clock: a run and its resume must multiply alike.
    """
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        return 2**20
    return entries if _LARGE <= entries <= SMALL else SMALL


def onednn_product(a_MK: Tensor, b_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """Return a @ b.T + bias [..., M, N], float32 on a CPU, without autograd."""
    product_MN: Tensor = torch.ops.mkldnn._linear_pointwise(a_MK, b_NK, bias_N, "none", [], "")
    return product_MN


def use_onednn(model: nn.Module) -> None:
    """Let every linear layer of `model` that is float32 on a CPU multiply through oneDNN, forward and backward."""
    if not has_onednn():
        return
    os.environ.setdefault(_CACHE_VARIABLE, str(_KERNELS))  # read when oneDNN makes its first kernel
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.device.type == "cpu" and module.weight.dtype == torch.float32:
            module.__class__ = _Linear


class _Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        small = input.numel() * len(self.weight) <= SMALL
        if small or input.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        output: Tensor = _Product.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return output


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return onednn_product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        grad_MN, x_MK = grad.flatten(0, -2), x.flatten(0, -2)
        return (
            onednn_product(grad_MN, weight.T).view_as(x) if to_x else None,
            onednn_product(grad_MN.T, x_MK.T) if to_weight else None,
            grad_MN.sum(0) if to_bias else None,
        )
