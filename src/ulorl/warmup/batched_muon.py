"""Muon (Jordan 2024) for many small matrices on a CPU: Newton-Schulz in float32, on batches of matrices of one shape.

`torch.optim.Muon` of torch 2.13 takes one matrix after the other in bfloat16, and has no option for either. On a
processor without bfloat16 products that is most of a step of a tiny model (docs/experiments.md).

Shapes: B matrices of M x N, M <= N.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic polynomial; the values of Jordan 2024 and of torch.optim.Muon
ITERATIONS = 5
SMALLEST_NORM = 1e-7


def orthogonalized(matrices_BMN: Tensor) -> Tensor:
    """Return each matrix with its singular values moved near 1 (0.7 to 1.2), in the dtype that it has.

    Each iteration is X <- a X + (b G + c G G) X with G = X X^T (Jordan 2024). Matrices must not be taller than wide.
    """
    a, b, c = COEFFICIENTS
    x: Tensor = matrices_BMN / torch.linalg.matrix_norm(matrices_BMN, keepdim=True).clamp(min=SMALLEST_NORM)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


class BatchedMuon(torch.optim.Optimizer):
    """The update of `torch.optim.Muon` with Nesterov momentum and without weight decay."""

    def __init__(self, matrices: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        """lr: of square and wide matrices; one with r times as many rows as columns learns sqrt(r) times as fast."""
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002 - torch's interface
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape[min(matrix.shape), max(matrix.shape)].append(matrix)
            for matrices in by_shape.values():
                self._update(matrices, group["lr"], group["momentum"])

    def _update(self, matrices: list[Tensor], lr: float, momentum: float) -> None:
        directions = []
        for matrix in matrices:
            assert matrix.grad is not None  # `step` leaves out those without
            average = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
            average.lerp_(matrix.grad, 1 - momentum)
            direction = matrix.grad.lerp(average, momentum)
            directions.append(direction.mT if _is_tall(matrix) else direction)
        for matrix, update in zip(matrices, orthogonalized(torch.stack(directions)), strict=True):
            rows, columns = matrix.shape
            matrix.add_(update.mT if _is_tall(matrix) else update, alpha=-lr * math.sqrt(max(1, rows / columns)))


def _is_tall(matrix: Tensor) -> bool:
    return matrix.shape[0] > matrix.shape[1]
