"""BatchedMuon against torch.optim.Muon and against the iteration written out in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ulorl.warmup.batched_muon import BatchedMuon, orthogonalized

SHAPES = [(8, 8), (8, 24), (24, 8), (8, 8), (24, 8)]


def _matrices(dtype: torch.dtype) -> list[Tensor]:
    draws = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=draws, dtype=torch.float64).to(dtype) for shape in SHAPES]


def _set_gradients(matrices: list[Tensor], step: int) -> None:
    draws = torch.Generator().manual_seed(1 + step)
    for matrix in matrices:
        matrix.grad = torch.randn(matrix.shape, generator=draws, dtype=torch.float64).to(matrix.dtype)


def _written_out(steps: int) -> list[Tensor]:
    """The same update for one matrix after the other, in float64, by the formulas of Jordan 2024."""
    matrices = _matrices(torch.float64)
    averages = [torch.zeros_like(matrix) for matrix in matrices]
    for step in range(steps):
        _set_gradients(matrices, step)
        for matrix, average in zip(matrices, averages, strict=True):
            assert matrix.grad is not None
            average += 0.05 * (matrix.grad - average)
            x = matrix.grad + 0.95 * (average - matrix.grad)
            x = x / x.square().sum().sqrt()
            for _ in range(5):  # on the right, so that a tall matrix needs no transposing
                gram = x.T @ x
                x = 3.4445 * x + x @ (-4.7750 * gram + 2.0315 * gram @ gram)
            rows, columns = matrix.shape
            matrix -= 0.01 * math.sqrt(max(1, rows / columns)) * x
    return matrices


def test_steps_are_those_of_the_formulas() -> None:
    matrices = _matrices(torch.float32)
    optimizer = BatchedMuon(matrices, lr=0.01)
    for step in range(4):
        _set_gradients(matrices, step)
        optimizer.step()
    for found, expected in zip(matrices, _written_out(4), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6)


def test_it_is_torchs_muon_but_for_bfloat16() -> None:
    """A step moves a matrix by 0.01 x sqrt(8) at most in Frobenius norm; bfloat16 has a relative error of 2^-8."""
    ours, theirs = _matrices(torch.float32), _matrices(torch.float32)
    for matrices, optimizer in (
        (ours, BatchedMuon(ours, lr=0.01)),
        (theirs, torch.optim.Muon(theirs, lr=0.01, weight_decay=0.0)),
    ):
        _set_gradients(matrices, 0)
        optimizer.step()
    for found, expected, start in zip(ours, theirs, _matrices(torch.float32), strict=True):
        moved = (expected - start).norm()
        assert moved > 0.01
        assert (found - expected).norm() < 0.03 * moved


def test_singular_values_move_near_one() -> None:
    """p(s) = 3.4445 s - 4.7750 s^3 + 2.0315 s^5, five times: the singular vectors stay, the values follow p."""
    values = torch.tensor([0.8, 0.5, 0.3, 0.1], dtype=torch.float64)
    draws = torch.Generator().manual_seed(2)
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=draws, dtype=torch.float64))[0] for n in (4, 6))
    expected = values / values.square().sum().sqrt()
    for _ in range(5):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    assert ((expected > 0.65) & (expected < 1.25)).all()
    (found,) = orthogonalized((left @ torch.diag(values) @ right[:4])[None])
    torch.testing.assert_close(found, left @ torch.diag(expected) @ right[:4], rtol=0, atol=1e-9)


def test_a_zero_gradient_moves_nothing_and_none_is_left_out() -> None:
    matrices = [torch.ones(2, 2), torch.ones(2, 2)]
    matrices[0].grad = torch.zeros(2, 2)
    BatchedMuon(matrices, lr=1.0).step()
    assert all(torch.equal(matrix, torch.ones(2, 2)) for matrix in matrices)


def test_a_schedule_changes_the_rate() -> None:
    matrices = [torch.zeros(2, 2)]
    optimizer = BatchedMuon(matrices, lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    moved = []
    for _ in range(2):
        matrices[0].grad = torch.eye(2)
        before = matrices[0].clone()
        optimizer.step()
        schedule.step()
        moved.append(float((matrices[0] - before).norm()))
    assert moved[1] == pytest.approx(moved[0] / 2, rel=1e-5)
