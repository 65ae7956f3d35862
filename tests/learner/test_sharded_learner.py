"""A learner of several ranks equals one of one process, in losses, gradients, weights and checkpoints (real gloo)."""

from __future__ import annotations

import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from processes import run_processes
from rank_learner import BATCHES, CPU, Case, of_ranks, one_process, save_models, train, whole_weights
from refusals import refused
from ulorl.cancellation import Cancelled, CancelToken
from ulorl.config.model_config import LoraConfig, ModelConfig
from ulorl.error_codes import ErrorCode
from ulorl.learner.experience import prepare
from ulorl.learner.make_learner import make_learner, make_rank_learner
from ulorl.learner.policy_learner import PolicyLearner
from ulorl.learner.ranks import MeshRanks
from ulorl.learner.update_result import UpdateSums
from ulorl.learner.update_start import UpdateStart

pytestmark = pytest.mark.slow

BATCH_GATE = {"mpt": {"tau": 0.02, "sigma": 3.0, "gate": "batch"}}
BONUS = {"kind": "bonus", "coefficient": 0.1, "target": 9.0}
TWO = [
    Case(2, 1), Case(1, 2), Case(2, 1, "untied", {"recompute": True}), Case(1, 2, "untied", {"layout": "packed"}),
    Case(2, 1, "moe", {"minibatches": 2}), Case(1, 2, "moe", {"recompute": True}, BATCH_GATE),
    Case(2, 1, "tied", {"layout": "packed", "offload": True}, BATCH_GATE, "many"),
    Case(1, 2, "tied", {"minibatches": 2, "recompute": True}, groups="many"),
    Case(2, 1, groups="one sample each", objective={"dynamic_sampling": False, "importance": "sais", "tis_cap": 1.5}),
    Case(2, 1, groups="none"), Case(1, 2, "tied", {"minibatches": 3}, {**BATCH_GATE, "tis_cap": 2.0}, "many"),
    Case(2, 1, "tied", {"minibatches": 2}, {"loss": "gspo", "entropy": BONUS}, "many"),
    Case(1, 2, "untied", {}, {"loss": "cispo", "entropy": BONUS}),
    Case(2, 1, "untied", {"minibatches": 2}, {"entropy": {"kind": "clip_cov", "share": 0.2, "low": 0.0}}, "many"),
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


def states(case: Case, folder: Path, at: Path) -> str:
    """A checkpoint of these ranks, one step later, and the exported model; and the same from another checkpoint."""
    ranks = MeshRanks("cpu", case.sequence)
    learner = of_ranks(case, folder, ranks)
    train(learner, case)
    mine = at / f"ranks {ranks.world}"
    learner.save(mine, background=True).result()
    learner.export(at / f"export {ranks.world}")
    problems = []
    again = reloaded(case, folder, mine, ranks)
    (after,), (expected,) = (train(one, replace(case, steps=1)) for one in (again, learner))
    if after != expected or apart(whole_weights(again), whole_weights(learner)):
        problems.append(f"resumed: {after} but {expected}")
    other = reloaded(case, folder, at / "one", ranks)
    (found,) = train(other, replace(case, steps=1))
    if abs(found["train/loss"] - expected["train/loss"]) > 1e-5:
        problems.append(f"from one process: {found} but {expected}")
    return "; ".join(problems)


def reloaded(case: Case, folder: Path, checkpoint: Path, ranks: MeshRanks | None) -> PolicyLearner:
    build = case.build(folder, checkpoint, version=case.steps)
    return make_rank_learner(build, CPU, ranks) if ranks else make_learner(build, CPU)


@pytest.mark.parametrize("kind", ["tied", "moe"])
def test_a_checkpoint_is_resumed_by_any_number_of_ranks(models: Path, tmp_path: Path, kind: str) -> None:
    torch.set_num_threads(1)
    objective = {"entropy": BONUS} if kind == "tied" else {}  # whose coefficient is in the checkpoint
    case = Case(model=kind, optim={"warmup_steps": 5}, objective=objective)
    alone = one_process(case, models)
    train(alone, case)
    for name in ("one", "ranks 2", "ranks 3"):
        (tmp_path / name).mkdir()
    alone.save(tmp_path / "one")
    for world in (2, 3):
        assert not any(run_processes(states, world, case, models, tmp_path))
        assert not [path for path in (tmp_path / f"ranks {world}").rglob("*") if path.suffix in (".pt", ".bin", ".pkl")]
    (expected,) = train(alone, replace(case, steps=1))
    for world in (2, 3):
        (found,) = train(reloaded(case, models, tmp_path / f"ranks {world}", None), replace(case, steps=1))
        assert found["train/loss"] == pytest.approx(expected["train/loss"], rel=1e-5)
        assert found["train/grad_norm"] == pytest.approx(expected["train/grad_norm"], rel=1e-3)
        exported = AutoModelForCausalLM.from_pretrained(tmp_path / f"export {world}")
        before = AutoModelForCausalLM.from_pretrained(tmp_path / "one" / "model").state_dict()
        assert apart(exported.state_dict(), before) < 1e-4


def disturbed(case: Case, folder: Path) -> str:
    """Something is wrong on rank 1 only: an infinite loss, an infinite gradient, a cancelled update."""
    ranks = MeshRanks("cpu", case.sequence)
    learner, problems = of_ranks(case, folder, ranks), []
    before, honest = whole_weights(learner), learner._loss_sum
    groups = BATCHES[case.groups]

    def infinite(*arguments: Any) -> Tensor:
        found = honest(*arguments)
        return found * float("inf") if ranks.rank == 1 else found

    def infinite_gradient(*arguments: Any) -> Tensor:
        found = honest(*arguments)
        if ranks.rank == 1:
            found.register_hook(lambda grad: grad * float("inf"))
        return found

    for cause, wrong in (("loss", infinite), ("gradient", infinite_gradient)):
        learner._loss_sum = wrong  # type: ignore[method-assign]
        update = learner.update(groups)
        if update.steps or len(update.skipped) != 1 or cause not in update.skipped[0].cause:
            problems.append(f"{cause}: {update}")
    if (learner.skipped_in_row, learner.updates, learner.version) != (2, 0, 0):
        problems.append(f"{learner.skipped_in_row} skipped, {learner.updates} updates, version {learner.version}")
    learner._loss_sum = honest  # type: ignore[method-assign]
    cancel = CancelToken()
    if ranks.rank == 1:
        cancel.cancel()
    try:
        learner.update(groups, cancel)
        problems.append("not cancelled")
    except Cancelled:
        pass
    if apart(whole_weights(learner), before):
        problems.append("the weights have changed")
    expected = one_process(case, folder).update(groups).means["train/loss"]
    if abs(learner.update(groups).means["train/loss"] - expected) > 1e-5:
        problems.append("the next update is another one")
    norm = learner._gradient(prepare(groups, learner.spec.objective, 16)[0], UpdateStart(), UpdateSums())
    squares = sum(float(p.grad.full_tensor().square().sum()) for p in learner.model.parameters())
    if not isinstance(norm, float) or norm < 0.02 or abs(squares**0.5 / 0.01 - 1) > 1e-4:
        problems.append(f"the gradient of norm {norm} was clipped to {squares**0.5}")
    return "; ".join(problems)


@pytest.mark.parametrize("sequence", [1, 2])
def test_what_happens_on_one_rank_happens_on_all(models: Path, sequence: int) -> None:
    case = Case(2 // sequence, sequence, "untied", {"grad_clip": 0.01}, groups="many")
    found = run_processes(disturbed, 2, case, models)
    assert found == ["", ""]


def lora(case: Case, folder: Path) -> str:
    build = case.build(folder)
    with refused(ErrorCode.MODEL_ADAPTERS, key="model.lora.rank"):
        make_rank_learner(replace(build, model=ModelConfig(lora=LoraConfig(rank=2))), CPU, MeshRanks("cpu", 1))
    return ""


def test_adapters_are_refused(models: Path) -> None:
    assert run_processes(lora, 1, Case(), models) == [""]
