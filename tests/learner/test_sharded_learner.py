"""A learner of several ranks equals one of one process, in losses, gradients, weights and checkpoints (real gloo)."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from processes import run_processes
from rank_learner import Case, of_ranks, one_process, save_models, train, whole_weights
from ulorl.learner.ranks import MeshRanks

pytestmark = pytest.mark.slow

ALL_MASK = {"mpt": {"tau": 0.02, "sigma": 3.0}}
BATCH_GATE = {"mpt": {"tau": 0.02, "sigma": 3.0, "gate": "batch"}}
TWO = [
    Case(2, 1), Case(1, 2), Case(2, 1, "untied", {"recompute": True}), Case(1, 2, "untied", {"layout": "packed"}),
    Case(2, 1, "moe", {"minibatches": 2}), Case(1, 2, "moe", {"recompute": True}, BATCH_GATE),
    Case(2, 1, "tied", {"layout": "packed", "offload": True}, BATCH_GATE, "many"),
    Case(1, 2, "tied", {"minibatches": 2, "recompute": True}, groups="many"),
    Case(2, 1, groups="one sample each", objective={"dynamic_sampling": False}), Case(2, 1, groups="none"),
]  # fmt: skip
FOUR = [
    Case(2, 2, "tied", {"minibatches": 2}, groups="many"), Case(1, 4, "untied", {"layout": "packed"}),
    Case(4, 1, "moe", {"recompute": True}, BATCH_GATE), Case(4, 1, "tied", groups="one sample each"),
    Case(2, 2, "moe", {"layout": "packed"}, groups="many"), Case(1, 4, "tied", {"recompute": True}, BATCH_GATE),
    Case(2, 2, "untied", groups="one sample each"),
]  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_models(folder)
    return folder


def trained(case: Case, folder: Path, ranks: MeshRanks | None = None) -> tuple[Any, ...]:
    learner = of_ranks(case, folder, ranks) if ranks else one_process(case, folder)
    return train(learner, case), whole_weights(learner)


def apart(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference, relative to the largest number of its tensor."""
    assert found.keys() == expected.keys()
    return max(float((found[n] - t).abs().max() / t.abs().max().clamp(min=1e-3)) for n, t in expected.items())


def compare(case: Case, folder: Path, ranks: MeshRanks, expected: tuple[Any, ...]) -> str:
    steps, weights = trained(case, folder, ranks)
    problems = []
    for step, (found, wanted) in enumerate(zip(steps, expected[0], strict=True)):
        if found["counts"] != wanted["counts"]:
            problems.append(f"step {step}: {found['counts']} but {wanted['counts']}")
        for name in wanted.keys() - {"counts"}:
            if abs(found[name] - wanted[name]) > 2e-4 * max(1.0, abs(wanted[name])):
                problems.append(f"step {step}: {name} {found[name]} but {wanted[name]}")
    if (distance := apart(weights, expected[1])) > 2e-4:
        problems.append(f"weights {distance:.2g} apart")
    return "; ".join(problems)


def in_rank(cases: list[Case], folder: Path, expected: list[tuple[Any, ...]]) -> list[str]:
    found = []
    for case, wanted in zip(cases, expected, strict=True):
        try:
            problem = compare(case, folder, MeshRanks("cpu", case.sequence), wanted)
        except Exception:
            problem = traceback.format_exc()
        if problem:
            found.append(f"{case}: {problem}")
    return found


@pytest.mark.parametrize(("world", "cases"), [(2, TWO), (4, FOUR)], ids=["two", "four"])
def test_ranks_together_train_as_one_process(models: Path, world: int, cases: list[Case]) -> None:
    torch.set_num_threads(1)
    expected = [trained(case, models) for case in cases]
    problems = run_processes(in_rank, world, cases, models, expected, timeout=150)
    assert not any(problems), "\n".join(problem for rank in problems for problem in rank)
