"""SIGINT and SIGTERM anywhere: the run stops there, says how to resume it, and then ends as an undisturbed run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import ulorl
from paths import COUNTDOWN
from small_runs import lines
from ulorl.engines.torch.torch_engine import TorchEngine
from ulorl.learner.optimizer import Optimizer
from ulorl.learner.policy import Policy
from ulorl.training import checkpoint, run
from ulorl.training.interrupts import Interrupted, catching_signals

pytestmark = pytest.mark.slow

RECIPE = COUNTDOWN
SMALL = [
    "steps=3", "rollout.prompts=6", "rollout.group=2", "rollout.max_tokens=96", "rollout.segments=3", "data.size=40",
    "eval.problems=4", "eval.samples=1", "eval.every=2", "run.checkpoint_every=0", "model.threads=1",
    "log.report=false", "optim.microbatch_tokens=400", "optim.minibatches=2", "objective.dynamic_sampling=false",
]  # fmt: skip
CLOCK = ("time/", "checkpoint/", "rollout/tokens_per_second")


def config(run_dir: Path, *overrides: str) -> ulorl.Config:
    return ulorl.load([RECIPE], [*SMALL, f"run.dir={run_dir}", *overrides])


def facts(run_dir: Path) -> tuple[object, ...]:
    metrics = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    samples = {path.name: path.read_text() for path in (run_dir / "samples").iterdir()}
    last = checkpoint.latest(run_dir)
    files = [*last.glob("*.safetensors"), last / "model" / "model.safetensors", run_dir / "model" / "model.safetensors"]
    return (
        [{k: v for k, v in m.items() if not k.startswith(CLOCK)} for m in metrics],
        samples,
        (run_dir / "timeline.jsonl").read_text(),
        {str(path.relative_to(run_dir)): path.read_bytes() for path in files},
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ulorl.train(config(tmp_path_factory.mktemp("runs") / "straight")).dir


@pytest.fixture
def send(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Send a signal before the n-th call of a method, and count the calls of all that follow."""

    def patch(kind: type, name: str, call: int, signum: int = signal.SIGINT) -> list[int]:
        calls, honest = [0], getattr(kind, name)

        def counted(*arguments: object) -> object:
            calls[0] += 1
            if calls[0] == call:
                signal.raise_signal(signum)
            return honest(*arguments)

        monkeypatch.setattr(kind, name, counted)
        return calls

    return patch


# The first decode steps are of the weight check (16), of the evaluation before training (up to 96), of step 1 (32).
@pytest.mark.parametrize(
    ("call", "last"), [(5, 16), (30, 30), (130, 130)], ids=["first weight check", "first evaluation", "first rollout"]
)
def test_before_the_first_step_ends(
    finished: Path, tmp_path: Path, send: Callable[..., list[int]], call: int, last: int
) -> None:
    calls = send(TorchEngine, "step", call, signal.SIGTERM)
    with pytest.raises(Interrupted, match=r"stopped before the first step.* ulorl train --resume") as stopped:
        ulorl.train(config(tmp_path / "r"))
    assert calls[0] == last  # not one decode step more; the weight check is finished, it is short
    assert stopped.value.exit_code == 143
    assert checkpoint.latest(tmp_path / "r").name == "step_000000"
    assert facts(run.resume(tmp_path / "r").dir) == facts(finished)


@pytest.mark.parametrize(
    ("kind", "name", "step"),
    [(TorchEngine, "step", 1), (Policy, "forward", 1), (Optimizer, "step", 2)],
    ids=["rollout", "micro-batch", "after a gradient update"],
)
def test_within_the_second_step(
    finished: Path, tmp_path: Path, send: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch,
    kind: type, name: str, step: int,
) -> None:  # fmt: skip
    """The step is abandoned at its next decode step or micro-batch; once the weights have changed it is finished."""
    sent: list[int] = []
    honest = run.Loop._step

    def second(loop: run.Loop, number: int) -> object:
        if number == 2:
            sent.append(0)
            nonlocal calls
            calls = send(kind, name, 2 if kind is not Optimizer else 1)
        return honest(loop, number)

    calls: list[int] = []
    monkeypatch.setattr(run.Loop, "_step", second)
    with pytest.raises(Interrupted) as stopped:
        ulorl.train(config(tmp_path / "r"))
    assert stopped.value.step == step
    assert sent
    assert calls[0] == 2  # of the optimizer's two mini-batches both; else nothing after the signal
    assert checkpoint.latest(tmp_path / "r").name == f"step_{step:06d}"
    assert len((tmp_path / "r" / "metrics.jsonl").read_text().splitlines()) == step + (step < 2)  # 2: not evaluated yet
    monkeypatch.undo()
    resumed = run.resume(tmp_path / "r")
    assert facts(resumed.dir) == facts(finished)
    assert [one and one.step for one in (resumed.before, resumed.after)] == [0, 3]


@pytest.mark.parametrize("last", [False, True])
def test_within_an_evaluation(
    finished: Path, tmp_path: Path, send: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch, last: bool
) -> None:
    """The step before it is saved with its numbers, and logged when the evaluation has been made after all."""
    honest, step = run.Loop._evaluate, 3 if last else 2
    calls: list[int] = []

    def evaluate(loop: run.Loop, number: int) -> object:
        if loop._boundary.counters.step == step:
            calls[:] = [0]
            nonlocal counted
            counted = send(TorchEngine, "step", 3)
        return honest(loop, number)

    counted: list[int] = []
    monkeypatch.setattr(run.Loop, "_evaluate", evaluate)
    with pytest.raises(Interrupted) as stopped:
        ulorl.train(config(tmp_path / "r"))
    assert stopped.value.step == step
    assert counted[0] == 3
    counters = checkpoint.load(checkpoint.latest(tmp_path / "r"), 2).counters
    assert counters.pending is not None
    assert counters.pending["step"] == step
    assert not (tmp_path / "r" / "finished.json").exists()
    monkeypatch.undo()
    assert facts(run.resume(tmp_path / "r").dir) == facts(finished)
    counters = checkpoint.load(checkpoint.latest(tmp_path / "r"), 2).counters
    assert counters.pending is None  # else a run that goes on from there would lose the line with the evaluation
    assert counters.logged == (tmp_path / "r" / "metrics.jsonl").stat().st_size
    longer = run.resume(tmp_path / "r", ["steps=4"])
    assert "eval/accuracy" in lines(longer.dir)[3]  # which is not due any more: step 3 is not the last one now


def test_a_boundary_that_is_saved_is_not_saved_again(
    tmp_path: Path, send: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = run.Loop._step

    def second(loop: run.Loop, number: int) -> object:
        if number == 2:
            send(TorchEngine, "step", 2)
            state.append((tmp_path / "r" / "checkpoints" / "step_000001").stat())
        return honest(loop, number)

    state: list[object] = []
    monkeypatch.setattr(run.Loop, "_step", second)
    with pytest.raises(Interrupted):
        ulorl.train(config(tmp_path / "r", "run.checkpoint_every=1"))
    assert state == [checkpoint.latest(tmp_path / "r").stat()]


def test_handlers_are_given_back() -> None:
    before = [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)]
    with catching_signals() as caught:
        assert caught.received == 0
        signal.raise_signal(signal.SIGTERM)
        assert caught.received == signal.SIGTERM
    assert [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_second_signal_ends_the_process_in_the_midst_of_a_call(signum: int, code: int) -> None:
    """The main thread is inside one call of C that takes minutes, where Python runs no handler."""
    script = (
        "import hashlib; from ulorl.training.interrupts import catching_signals\n"
        "with catching_signals(): print('ready', flush=True); hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signum)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signum)
        assert process.wait(timeout=10) == code
