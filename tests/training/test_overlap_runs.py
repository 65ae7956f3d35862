"""Runs with `rollout.overlap` are the same bit for bit, however the threads meet and wherever they are resumed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ulorl
from refusals import refused
from small_runs import config, killed_copy, lines, samples
from ulorl.config.training_config import EvalConfig
from ulorl.engines.torch.torch_engine import TorchEngine
from ulorl.error_codes import ErrorCode
from ulorl.learner.learner import Weights
from ulorl.learner.optimizer import Optimizer
from ulorl.learner.policy_learner import PolicyLearner
from ulorl.learner.update_result import Update
from ulorl.training import checkpoint
from ulorl.training.build import build
from ulorl.training.interrupts import Interrupted
from ulorl.training.loop import Loop
from ulorl.training.preflight import load_inputs
from ulorl.types import Segment

pytestmark = pytest.mark.slow

OVERLAP = [
    "rollout.overlap=true", "rollout.max_tokens=120", "rollout.segments=2", "eval.problems=2", "eval.samples=1",
    "objective.dynamic_sampling=false", "optim.microbatch_tokens=300", "log.progress=false",
]  # fmt: skip
SECONDS = 30


def overlapped(run_dir: Path, *overrides: str) -> ulorl.Config:
    return config(run_dir, *OVERLAP, *overrides)


def facts(run_dir: Path) -> tuple[object, ...]:
    last = checkpoint.latest(run_dir)
    files = [*last.glob("*.safetensors"), last / "model" / "model.safetensors", run_dir / "model" / "model.safetensors"]
    contents = {str(path.relative_to(run_dir)): path.read_bytes() for path in files}
    return lines(run_dir), samples(run_dir), contents


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> ulorl.Result:
    folder = tmp_path_factory.mktemp("runs") / "straight"
    return ulorl.train(overlapped(folder, "run.checkpoint_every=1", "run.keep_last=9"))


def test_each_step_trains_the_groups_that_the_one_before_released(straight: ulorl.Result) -> None:
    steps = [m for m in straight.metrics if m["step"]]
    assert [m["train/groups"] for m in steps] == [0, *(m["rollout/released"] for m in steps[:-1])]
    assert [m["version"] for m in steps] == [0, *np.cumsum([m["train/updates"] for m in steps[1:]])]
    assert steps[-1]["version"] == 3
    # Every trained token is at least one version old once a version has come out of an update.
    assert steps[1]["rollout/staleness_mean"] == 0
    assert all(m["rollout/staleness_mean"] >= 1 and m["mismatch/mean"] is None for m in steps[2:])
    assert all(m["mismatch/probe_mean"] < 1e-5 for m in steps[1:])
    last = checkpoint.load(checkpoint.latest(straight.dir), group=2)
    kept = {m.sample.id for g in last.pools.experience.released for m in g.members}
    assert len(kept) == 2 * steps[-1]["rollout/released"] > 0
    assert not any(f'"sample": {id},' in text for id in kept for text in samples(straight.dir).values())


@pytest.mark.parametrize("when", ["at its begin", "after the rollout"])
def test_the_result_does_not_depend_on_when_the_update_runs(
    straight: ulorl.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The update in this thread, whole, before the first token or after the last: the same run bit for bit."""

    class Late(Future[Update]):
        def __init__(self, learner: PolicyLearner, *arguments: Any) -> None:
            super().__init__()
            self.make = lambda: learner.update(*arguments)

        def result(self, timeout: float | None = None) -> Update:
            if not self.done():
                self.set_result(self.make())
            return super().result(timeout)

    def begin(*arguments: Any) -> Future[Update]:
        pending = Late(*arguments)
        if when == "at its begin":
            pending.result()
        return pending

    monkeypatch.setattr(PolicyLearner, "begin", begin)
    assert facts(ulorl.train(overlapped(tmp_path / "r")).dir) == facts(straight.dir)


@pytest.mark.parametrize("boundary", [1, 3])  # at 2 the interrupted and the failing run resume
def test_a_killed_run_resumes_at_every_boundary(straight: ulorl.Result, tmp_path: Path, boundary: int) -> None:
    target = killed_copy(straight.dir, tmp_path / "r", boundary)
    resumed = ulorl.resume(target)
    assert [path.name for path in (target / "checkpoints").iterdir() if checkpoint.step_of(path) > boundary]
    assert facts(resumed.dir) == facts(straight.dir)


def test_a_longer_run_is_an_extended_one(straight: ulorl.Result, tmp_path: Path) -> None:
    ulorl.train(overlapped(tmp_path / "r", "steps=2"))
    assert facts(ulorl.resume(tmp_path / "r", ["steps=4"]).dir) == facts(straight.dir)


class ThirdStep:
    """Disturbs step 3: `updating` is called in the thread of its update, before it, `updated` is set after it, and
    `decoding` is called before each decode step of its rollout."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.updating: Callable[[Any], None] = lambda _: None
        self.decoding: Callable[[TorchEngine], None] = lambda _: None
        self.updated, self.number = threading.Event(), 0
        step, decode, update = Loop._algorithm_step, TorchEngine.step, PolicyLearner.update

        def algorithm_step(loop: Loop, number: int, *arguments: Any) -> Any:
            self.number = number
            try:
                return step(loop, number, *arguments)
            finally:
                self.number = 0

        def decoded(engine: TorchEngine) -> list[Segment]:
            if self.number == 3:
                self.decoding(engine)
            return decode(engine)

        def updated(learner: PolicyLearner, groups: Any, cancel: Any) -> Update:
            if self.number != 3:
                return update(learner, groups, cancel)
            self.updating(cancel)
            result = update(learner, groups, cancel)
            self.updated.set()
            return result

        monkeypatch.setattr(Loop, "_algorithm_step", algorithm_step)
        monkeypatch.setattr(TorchEngine, "step", decoded)
        monkeypatch.setattr(PolicyLearner, "update", updated)


@pytest.mark.parametrize("changed", [False, True], ids=["before the weights change", "after they have changed"])
def test_an_interrupted_run_ends_at_one_boundary(
    straight: ulorl.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    changed: bool,
) -> None:  # fmt: skip
    sent = threading.Event()

    def updating(_: Any) -> None:
        assert changed or sent.wait(SECONDS)

    def decoding(_: TorchEngine) -> None:
        if not sent.is_set():
            assert not changed or third.updated.wait(SECONDS)
            signal.raise_signal(signal.SIGINT)
            sent.set()

    with monkeypatch.context() as patched:
        third = ThirdStep(patched)
        third.updating, third.decoding = updating, decoding
        with pytest.raises(Interrupted) as stopped:
            ulorl.train(overlapped(tmp_path / "r"))
    assert stopped.value.step == (3 if changed else 2)
    late = "step 3: its update has changed the weights already, so the step is finished before the run stops"
    assert (late in capsys.readouterr().out) == changed
    saved = checkpoint.load(checkpoint.latest(tmp_path / "r"), group=2)
    assert saved.counters.step == stopped.value.step
    assert saved.pools.experience.released
    assert facts(ulorl.resume(tmp_path / "r").dir) == facts(straight.dir)


def test_an_engine_replaced_in_mid_update_gets_the_version_of_the_step(
    straight: ulorl.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two faults in a row after the learner's weights have changed: the new engine decodes as the old one would have.
    Its batches are others, so log-probs differ by rounding."""
    third, failed, loaded = ThirdStep(monkeypatch), list[int](), list[int]()
    load = TorchEngine.load_weights

    def decoding(engine: TorchEngine) -> None:
        if len(failed) < 2:
            assert third.updated.wait(SECONDS)
            failed.append(engine.version)
            raise RuntimeError("an illegal memory access")

    def loading(engine: TorchEngine, weights: Any, version: int) -> None:
        loaded.append(version)
        load(engine, weights, version)

    third.decoding = decoding
    monkeypatch.setattr(TorchEngine, "load_weights", loading)
    found = ulorl.train(overlapped(tmp_path / "r"))
    assert (failed, loaded) == ([1, 1], [1, 1, 2, 3])  # of step 2, of the new engine, of steps 3 and 4
    for ours, theirs in zip(found.metrics[1:], straight.metrics[1:], strict=True):
        for name in ("version", "rollout/tokens", "rollout/finished", "train/samples", "rollout/staleness_mean"):
            assert ours[name] == theirs[name], name
    one, two = (load_file(run.model / "model.safetensors") for run in (found, straight))
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)


def test_a_replaced_engine_with_other_weights_is_refused_without_asking_the_learner(tmp_path: Path) -> None:
    cfg = overlapped(tmp_path / "r")
    parts = build(cfg, load_inputs(cfg.model_copy(update={"eval": EvalConfig()})))
    weights, check = parts.learner.publish(), parts.weight_check
    check(parts.engine, parts.learner)
    score = parts.learner.score
    parts.learner.score = None  # type: ignore[method-assign,assignment] # may not be called
    check.replacement(parts.engine, 0, parts.learner)
    torch.manual_seed(0)
    for noise, message in (
        (0.02, r"log-probs are .* nats apart"),
        (9.0, r"it gives \d+ of the \d+ tokens of the last"),
    ):
        others = [(name, tensor + noise * tensor.std() * torch.randn_like(tensor)) for name, tensor in weights.tensors]
        parts.engine.load_weights(others, 0)
        with refused(ErrorCode.ENGINE_MISMATCH, key="engine.tolerance") as caught:
            check.replacement(parts.engine, 0, parts.learner)
        assert "does not have the weights of version 0" in str(caught.value)
        assert caught.match(message)
    parts.engine.load_weights(weights.tensors, 0)
    check.replacement(parts.engine, 0, parts.learner)
    parts.learner.score = score  # type: ignore[method-assign]
    parts.engine.load_weights(weights.tensors, 1)
    check.replacement(parts.engine, 1, parts.learner)  # of a version that was not checked: compared with the learner
    parts.engine.close()
    parts.learner.close()


def test_published_weights_stay_those_of_their_version(tmp_path: Path) -> None:
    cfg = overlapped(tmp_path / "r")
    parts = build(cfg, load_inputs(cfg.model_copy(update={"eval": EvalConfig()})))
    weights: Weights = parts.learner.publish()
    before = {name: tensor.clone() for name, tensor in weights.tensors}
    with torch.no_grad():
        for parameter in parts.learner.model.parameters():
            parameter.mul_(2)
    assert before.keys() == dict(weights.tensors).keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in weights.tensors)  # read a second time
    assert all(torch.equal(2 * before[name], tensor) for name, tensor in parts.learner.publish().tensors)
    parts.engine.close()
    parts.learner.close()


def test_an_update_that_fails_stops_the_run_where_it_resumes(
    straight: ulorl.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def updating(_: Any) -> None:
        raise RuntimeError("CUDA out of memory")

    with monkeypatch.context() as patched:
        ThirdStep(patched).updating = updating
        with pytest.raises(RuntimeError, match="CUDA out of memory"):
            ulorl.train(overlapped(tmp_path / "r", "run.checkpoint_every=0"))
    assert checkpoint.latest(tmp_path / "r").name == "step_000002"
    assert facts(ulorl.resume(tmp_path / "r", ["run.checkpoint_every=2"]).dir) == facts(straight.dir)


def test_a_diverged_update_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Optimizer.step
    calls = 0

    def counted(optimizer: Optimizer) -> float:
        nonlocal calls
        calls += 1
        return step(optimizer)

    honest = PolicyLearner._loss_sum
    monkeypatch.setattr(Optimizer, "step", counted)
    monkeypatch.setattr(PolicyLearner, "_loss_sum", lambda *a: honest(*a) * (np.inf if calls else 1.0))
    with refused(ErrorCode.LEARNER_DIVERGED, key="optim.max_skipped") as caught:
        ulorl.train(overlapped(tmp_path / "r", "optim.max_skipped=1", "eval.data={}", "run.checkpoint_every=1"))
    assert "step 3: 1 mini-batches in a row were skipped" in str(caught.value)
    assert "return to " in str(caught.value)
    assert "step_000002 with: ulorl train --resume" in str(caught.value)


def test_overlap_and_taking_turns_exclude_each_other(tmp_path: Path) -> None:
    for engine in ("engine={kind='vllm', vllm={sleep=true}}", "backend={kind='ray', colocate=true}"):
        with refused(ErrorCode.CONFIG_CONFLICT, key="rollout.overlap"):
            overlapped(tmp_path / "r", engine)
