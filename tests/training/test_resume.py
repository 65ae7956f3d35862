"""A run that is stopped, killed or interrupted and resumed is the run that never stopped, bit for bit."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ulorl
from bad_inputs import run as command_line
from faults import lost_and_duplicated
from refusals import refused
from small_runs import RECIPE, SMALL, config, evaluations, killed_copy, lines, samples, timeline
from ulorl.error_codes import ErrorCode
from ulorl.runs import run_folder
from ulorl.runs.run_log import RunLog
from ulorl.training import checkpoint, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> run.Result:
    return ulorl.train(config(tmp_path_factory.mktemp("runs") / "straight"))


def test_resumed_run_is_the_run_that_never_stopped(finished: run.Result, tmp_path: Path) -> None:
    """Stopped after step 2 of 4 and resumed: same metrics, samples, weights and optimizer state, bit for bit."""
    ulorl.train(config(tmp_path / "cut", "steps=2"))
    # what a killed run can leave behind: lines and samples after its last checkpoint
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "reward/mean": 9.0}\n{"step": 4, "rew')
    with (tmp_path / "cut" / "timeline.jsonl").open("a") as file:
        file.write('{"step":3,"ver')
    for folder in ("samples", "evaluations"):
        (tmp_path / "cut" / folder / "step_000003.jsonl").write_text("{}\n")
    resumed = ulorl.resume(tmp_path / "cut", ["steps=4"])
    assert lines(resumed.dir) == lines(finished.dir)
    assert samples(resumed.dir) == samples(finished.dir)
    assert timeline(resumed.dir) == timeline(finished.dir)
    assert evaluations(resumed.dir) == evaluations(finished.dir)
    assert list(evaluations(finished.dir)) == [f"step_{step:06d}.jsonl" for step in (0, 2, 4)]
    for name in ("model/model.safetensors", "optimizer.safetensors", "pools.safetensors"):
        ours = load_file(checkpoint.latest(resumed.dir) / name)
        theirs = load_file(checkpoint.latest(finished.dir) / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_a_decoupled_run_with_an_entropy_bonus_resumes_bit_for_bit(tmp_path: Path) -> None:
    """Its pools hold the learner's log-probs, and its checkpoints the coefficient. Engine and learner agree here to
    1e-4, so the truncated weights are 1, and ratios differ from 1 by staleness alone."""
    settings = [
        "objective.importance=decoupled", "objective.tis_cap=2", "objective.entropy.kind=bonus",
        "objective.entropy.target=0.5", "objective.entropy.step=0.01",
    ]  # fmt: skip
    straight = ulorl.train(config(tmp_path / "straight", *settings))
    trained = [m for m in straight.metrics if m.get("train/updates")]
    assert [m["importance/tis_mean"] for m in trained] == pytest.approx([1.0] * len(trained), abs=1e-3)
    assert any(m["rollout/staleness_mean"] for m in trained)
    assert any(m["entropy/bonus"] for m in trained)
    killed_copy(straight.dir, tmp_path / "cut", step=2)
    assert lines(ulorl.resume(tmp_path / "cut").dir) == lines(straight.dir)
    for name in ("model/model.safetensors", "optimizer.safetensors", "pools.safetensors"):
        ours, theirs = (load_file(checkpoint.latest(tmp_path / run) / name) for run in ("cut", "straight"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert "entropy_coefficient" in load_file(checkpoint.latest(tmp_path / "cut") / "optimizer.safetensors")


def test_the_schedule_may_change_on_resume(tmp_path: Path) -> None:
    """From many samples to fewer places than samples are carried, to segments, and to whole outputs: none is lost."""
    few = "eval.problems=2", "eval.samples=1", "eval.every=0", "run.checkpoint_every=1"
    ulorl.train(config(tmp_path / "r", *few, "steps=2", "rollout.schedule={kind='refill',factor=2.5}"))
    ulorl.resume(tmp_path / "r", ["steps=3", "rollout.schedule.factor=1"])
    ulorl.resume(tmp_path / "r", ["steps=4", "rollout.schedule.kind=segment"])
    many, fewer, segments, whole = ulorl.resume(tmp_path / "r", ["steps=5", "rollout.segments=1"]).metrics[-4:]
    assert lost_and_duplicated(tmp_path / "r") == (0, 0)
    places = 8 * 2  # of factor 1
    assert many["rollout/carried"] > places
    assert many["train/groups"] == fewer["train/groups"] == 8
    assert segments["rollout/in_flight"] == fewer["rollout/carried"] + 8 * 2  # all of them and the new ones
    assert segments["rollout/carried"] > 0
    assert whole["rollout/carried"] == 0


def test_written_beside_the_run_checkpoints_are_the_same(finished: run.Result, tmp_path: Path) -> None:
    beside = ulorl.train(config(tmp_path / "beside", "run.async_checkpoint=true"))
    assert lines(beside.dir) == lines(finished.dir)
    ours, theirs = checkpoint.latest(beside.dir), checkpoint.latest(finished.dir)
    assert ours.name == theirs.name
    for path in theirs.rglob("*.*"):
        if path.name != "state.json":
            assert (ours / path.relative_to(theirs)).read_bytes() == path.read_bytes(), path
    states = [json.loads((folder / "state.json").read_text()) for folder in (ours, theirs)]
    for state, result in zip(states, (beside, finished), strict=True):  # of lines that hold the clock
        assert state["counters"].pop("logged") == (result.dir / "metrics.jsonl").stat().st_size
    assert states[0] == states[1]
    logged = [m for m in beside.metrics if "checkpoint/step" in m]
    assert [(m["step"], m["checkpoint/step"]) for m in logged] == [(3, 2)]  # the last one has no line after it
    assert all(m["checkpoint/bytes"] > 3e6 and m["checkpoint/seconds"] > 0 for m in logged)


def test_the_same_command_resumes(
    finished: run.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed before the first checkpoint, killed after the last step and before the end, and finished."""
    target, honest = tmp_path / "r", RunLog.step

    def killed(log: RunLog, metrics: dict[str, object]) -> None:
        honest(log, metrics)
        if metrics["step"] == 1:
            raise KeyboardInterrupt

    def killed_at_the_end(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RunLog, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            ulorl.train(config(target))
    assert len(lines(target)) == 2
    with monkeypatch.context() as patched:
        patched.setattr(run_folder, "finish", killed_at_the_end)
        with pytest.raises(KeyboardInterrupt):
            ulorl.train(config(target))
    assert f"{target} holds this run without a checkpoint yet: it starts again" in capsys.readouterr().out
    assert checkpoint.latest(target).name == "step_000004"
    shutil.rmtree(target / "model")
    resumed = ulorl.train(config(target, "run.keep_last=5"))
    assert (resumed.before, resumed.after) == (finished.before, finished.after)
    assert None not in (resumed.before, resumed.after)
    said = capsys.readouterr().out
    assert (
        f"{target} holds this run, unfinished (--overwrite starts again). It resumes with run.keep_last=5 (was 2)"
        in said
    )
    assert "from step 4 of 4" in said
    assert lines(target) == lines(finished.dir)
    assert samples(target) == samples(finished.dir)
    assert timeline(target) == timeline(finished.dir)
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (target, finished.dir)]
    assert weights[0] == weights[1]
    with refused(ErrorCode.RUN_FOLDER_TAKEN, file=target, key="run.dir"):
        ulorl.train(config(target))
    with refused(ErrorCode.RUN_FOLDER_TAKEN, key="rollout.prompts"):
        ulorl.train(config(target, "rollout.prompts=4"))
    shutil.rmtree(target / "checkpoints")
    with refused(ErrorCode.CHECKPOINT_MISSING, file=target):
        ulorl.resume(target, ["steps=9"])


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the system refuse to write more bytes into a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_takes_no_more_ends_with_code_2_and_everything_before_it(
    finished: run.Result, tmp_path: Path
) -> None:
    """The system refuses files of more than a megabyte: the first checkpoint of the resumed run fails for real."""
    target = killed_copy(finished.dir, tmp_path / "r", step=2)
    for beside in ("false", "true"):
        command = ["train", "--resume", str(target), "run.checkpoint_every=1", f"run.async_checkpoint={beside}"]
        with largest_file(1 << 20):
            code, out, err = command_line(command)
        assert code == 2, out + err
        assert "Traceback" not in err
        assert "step_000003.partial: cannot be written: File too large" in err
        assert (
            f"step_000002 is complete. Free space or give permission, then resume with: ulorl train --resume {target}"
            in err
        )
        assert [path.name for path in (target / "checkpoints").iterdir()] == ["step_000002"]
    resumed = ulorl.resume(target)
    assert lines(resumed.dir) == lines(finished.dir)
    assert samples(resumed.dir) == samples(finished.dir)
    assert timeline(resumed.dir) == timeline(finished.dir)


def test_a_run_folder_can_be_moved_before_it_is_resumed(tmp_path: Path) -> None:
    """Also with SAIS and several gradient updates a step, the resumed run is the run that never stopped."""
    overrides = ["objective.importance=sais", "optim.minibatches=2", "eval.every=0"]
    straight = ulorl.train(config(tmp_path / "old", *overrides)).dir.rename(tmp_path / "moved")
    resumed = ulorl.resume(killed_copy(straight, tmp_path / "new", step=2))
    assert resumed.dir == tmp_path / "new"
    assert not (tmp_path / "old").exists()
    ours = load_file(checkpoint.latest(resumed.dir) / "model" / "model.safetensors")
    theirs = load_file(checkpoint.latest(straight) / "model" / "model.safetensors")
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    assert samples(resumed.dir) == samples(straight)


def test_problems_must_be_those_the_run_began_with(tmp_path: Path) -> None:
    problems = tmp_path / "p.jsonl"
    lines = [json.dumps({"problem": f"{a},2,3>{a + 5}", "answer": str(a + 5)}) for a in range(5, 10)]
    problems.write_text("\n".join(lines) + "\n")
    overrides = [
        "steps=1",
        "data.kind=files",
        f"data.path={problems}",
        "data.size=0",
        "reward.kind=math",
        "eval.data={}",
    ]
    ulorl.train(config(tmp_path / "r", *overrides))
    for changed, what in ((lines[:-1], "another number"), (lines[::-1], "order changed")):
        problems.write_text("\n".join(changed) + "\n")
        with refused(ErrorCode.RUN_PROBLEMS_CHANGED, key="data.path") as caught:
            ulorl.resume(tmp_path / "r", ["steps=2"])
        assert what in str(caught.value)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_saves_and_says_how_to_resume(tmp_path: Path, signum: int, code: int) -> None:
    target = tmp_path / "stopped"
    overrides = [*SMALL, "steps=500", "eval.every=0", f"run.dir={target}"]
    command = [sys.executable, "-m", "ulorl", "train", str(RECIPE), *overrides]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    deadline = time.monotonic() + 120
    while not (target / "checkpoints" / "step_000002").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert f"ulorl train --resume {target}" in errors
    step = int(checkpoint.latest(target).name.removeprefix("step_"))
    assert lines(target)[-1]["step"] == step  # nothing after the checkpoint, nothing before it is missing
    resumed = ulorl.resume(target, [f"steps={step + 1}"])
    assert [m["step"] for m in resumed.metrics] == list(range(step + 2))
