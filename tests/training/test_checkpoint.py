"""Checkpoints of the tiny reasoner: written fully or not at all, in the background or not, kept, dropped, refused."""

from __future__ import annotations

import errno
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ulorl
from paths import COUNTDOWN
from refusals import refused
from ulorl.common import atomic_files
from ulorl.config.training_config import EvalConfig, RunConfig
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.learner import learner_files
from ulorl.rollout.pool_io import Pools
from ulorl.rollout.pools import ExperiencePool, UnfinishedPool
from ulorl.training import checkpoint
from ulorl.training.build import Components, build
from ulorl.training.checkpoint import Boundary, CheckpointWriter, Counters
from ulorl.training.preflight import load_inputs

RECIPE = COUNTDOWN


@pytest.fixture(scope="module")
def components() -> Iterator[Components]:
    cfg = ulorl.load([RECIPE], ["rollout.prompts=2", "rollout.max_tokens=32", "data.size=20", "model.threads=1"])
    built = build(cfg, load_inputs(cfg.model_copy(update={"eval": EvalConfig()})))
    yield built
    built.engine.close()


def boundary(step: int) -> Boundary:
    return Boundary(Counters(step=step, logged=0), Pools(UnfinishedPool(), ExperiencePool(2)), updates=0)


def writer(components: Components, run_dir: Path, **settings: object) -> CheckpointWriter:
    run_dir.mkdir(exist_ok=True)
    return CheckpointWriter(run_dir, components.inputs.tokenizer, RunConfig(**settings))  # type: ignore[arg-type]


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("beside", [False, True])
def test_the_newest_and_the_multiples_are_kept(components: Components, tmp_path: Path, beside: bool) -> None:
    with writer(components, tmp_path, keep_last=2, keep_every=3, async_checkpoint=beside) as writing:
        for step in range(9):
            writing.save(boundary(step), components.learner)
    assert names(tmp_path) == [f"step_{step:06d}" for step in (3, 6, 7, 8)]
    (tmp_path / "checkpoints" / "step_000010.partial").mkdir()
    (tmp_path / "checkpoints" / "step_000009.removed").mkdir()
    assert checkpoint.latest(tmp_path).name == "step_000008"
    with writer(components, tmp_path, keep_last=2, keep_every=3, async_checkpoint=beside) as writing:
        writing.save(boundary(9), components.learner)
    assert names(tmp_path) == [f"step_{step:06d}" for step in (3, 6, 8, 9)]  # what a killed process left is removed


def test_written_beside_the_run_it_is_the_same_and_of_its_own_moment(
    components: Components, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread is held until weights and moments have changed; what it writes are those of before, byte for byte."""
    learner = components.learner
    for parameter in learner.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    learner.optimizer.step()
    with writer(components, tmp_path / "straight") as writing:
        writing.save(boundary(1), learner)
    go, honest = threading.Event(), learner_files.save_exact
    monkeypatch.setattr(learner_files, "save_exact", lambda *a: (time.sleep(0.1), honest(*a)))
    with writer(components, tmp_path / "slow") as writing:
        writing.save(boundary(1), learner)
        assert writing.metrics()["checkpoint/write_seconds"] >= 0.1  # type: ignore[operator]
    monkeypatch.setattr(learner_files, "save_exact", lambda *a: (go.wait(20), honest(*a)))
    with writer(components, tmp_path / "beside", async_checkpoint=True) as writing:
        writing.save(boundary(1), learner)
        assert writing.metrics() == {}  # not written yet
        learner.optimizer.step()
        go.set()
        writing.wait()
        metrics = writing.metrics()
        assert writing.metrics() == {}  # reported once
    straight, beside = (checkpoint.latest(tmp_path / name) for name in ("straight", "beside"))
    assert files(beside) == files(straight)
    assert metrics["checkpoint/step"] == 1
    assert metrics["checkpoint/bytes"] == sum(map(len, files(straight).values()))
    assert 0 < metrics["checkpoint/seconds"] < metrics["checkpoint/write_seconds"]  # type: ignore[operator]
    now = learner.model.state_dict()
    saved = load_file(beside / "model" / "model.safetensors")
    assert not any(torch.equal(saved[name], now[name]) for name in saved)


def test_everything_is_flushed_before_a_checkpoint_is_one(
    components: Components, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "samples").mkdir()
    for name in ("metrics.jsonl", "samples/step_000001.jsonl", "samples/step_000002.jsonl"):
        (tmp_path / name).write_text("{}\n")
    made: list[str] = []
    sync, rename = atomic_files.sync, Path.rename
    monkeypatch.setattr(atomic_files, "sync", lambda path: (made.append(path.name), sync(path)))
    monkeypatch.setattr(Path, "rename", lambda self, to: (made.append(f"{self.name} to {to.name}"), rename(self, to)))
    with writer(components, tmp_path, keep_last=1) as writing:
        writing.save(boundary(1), components.learner)
        renamed = made.index("step_000001.partial to step_000001")
        whole = {Path(name).name for name in files(checkpoint.latest(tmp_path))}
        assert {"model.safetensors", "optimizer.safetensors", "pools.safetensors", "state.json"} <= whole
        assert set(made[:renamed]) >= whole | {"metrics.jsonl", "step_000001.jsonl", "samples", "step_000001.partial"}
        assert made[renamed + 1] == "checkpoints"
        made.clear()
        writing.save(boundary(2), components.learner)
    assert "step_000002.jsonl" in made
    assert "step_000001.jsonl" not in made  # it is on the disk already
    assert made[-1] == "step_000001 to step_000001.removed"  # the old one goes when the new one is there


@pytest.mark.parametrize("beside", [False, True])
def test_a_full_disk_leaves_the_checkpoints_before_it(
    components: Components, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    with writer(components, tmp_path, async_checkpoint=beside) as writing:
        writing.save(boundary(1), components.learner)
        writing.wait()
        before = files(checkpoint.latest(tmp_path))

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(checkpoint, "save_file", full)
        with pytest.raises(UserError) as caught:  # noqa: PT012 - an error of the thread is raised by the next call
            writing.save(boundary(2), components.learner)
            while not writing.metrics():
                pass
    message = str(caught.value)
    assert caught.value.code is ErrorCode.FILE_NOT_WRITABLE
    assert f"{tmp_path / 'checkpoints' / 'step_000002.partial'}: cannot be written: No space left on device" in message
    assert (
        f"step_000001 is complete. Free space or give permission, then resume with: ulorl train --resume {tmp_path}"
        in (message)
    )
    assert names(tmp_path) == ["step_000001"]  # an incomplete one takes no space
    assert files(checkpoint.latest(tmp_path)) == before


@pytest.mark.parametrize(("found", "age"), [(1, "an older"), (99, "another"), ("x", "another")])
def test_another_format_is_refused_with_both_named(
    components: Components, tmp_path: Path, found: object, age: str
) -> None:
    with writer(components, tmp_path) as writing:
        writing.save(boundary(1), components.learner)
    state = checkpoint.latest(tmp_path) / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "format": found}))
    for read in (checkpoint.newest, checkpoint.latest, lambda _: checkpoint.load(state.parent, 2)):
        with refused(ErrorCode.CHECKPOINT_FORMAT, file=state.parent) as caught:
            read(tmp_path)
        assert f"checkpoint format {found}, of {age} version of ulorl; this one reads format 2" in str(caught.value)
        assert f"model.path={state.parent / 'model'}" in str(caught.value)


@pytest.mark.parametrize("name", ["state.json", "pools.safetensors"])
def test_a_damaged_one_is_refused_by_name(components: Components, tmp_path: Path, name: str) -> None:
    with writer(components, tmp_path) as writing:
        writing.save(boundary(1), components.learner)
    path = checkpoint.latest(tmp_path) / name
    path.write_bytes(path.read_bytes()[:-9])
    with refused(ErrorCode.CHECKPOINT_DAMAGED, file=path.parent):
        checkpoint.load(path.parent, 2)
    path.unlink()
    with refused(ErrorCode.CHECKPOINT_DAMAGED, file=path.parent):
        checkpoint.load(path.parent, 2)
