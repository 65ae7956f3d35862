"""Whole runs under torchrun: two processes share the learner, and the run equals one of a single process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from safetensors.torch import load_file

import ulorl
from refusals import refused
from small_runs import RECIPE, SMALL, config, lines, samples
from ulorl.error_codes import ErrorCode
from ulorl.training import checkpoint, run

pytestmark = pytest.mark.slow

LIMIT = 150.0  # seconds
OWN = ("age/", "mismatch/", "train/", "entropy/", "importance/", "mpt/")  # sums in another order


def torchrun(ranks: int, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "-m", "ulorl", *arguments]


def train(ranks: int, *arguments: str) -> None:
    done = subprocess.run(torchrun(ranks, "train", *arguments), capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr


def assert_same_run(found: Path, expected: Path) -> None:
    """The same samples, and metrics up to float tolerance."""
    assert samples(found).keys() == samples(expected).keys()
    for one, other in zip(lines(found), lines(expected), strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            if name.startswith(OWN) and value is not None:
                assert one[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
            else:
                assert one[name] == value, name
    for name, tensor in load_file(expected / "model" / "model.safetensors").items():
        assert (load_file(found / "model" / "model.safetensors")[name] - tensor).abs().max() < 2e-5, name


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ulorl.train(config(tmp_path_factory.mktemp("alone") / "run")).dir


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("shared") / "run"
    train(2, str(RECIPE), *SMALL, f"run.dir={run_dir}", "backend.kind=torchrun", "backend.ranks=2")
    return run_dir


def test_two_processes_train_as_one(alone: Path, shared: Path) -> None:
    assert_same_run(shared, alone)


def test_two_processes_that_share_sequences_train_as_one(alone: Path, tmp_path: Path) -> None:
    train(2, str(RECIPE), *SMALL, f"run.dir={tmp_path / 'run'}", "optim.sequence_parallel=2")  # torchrun is noticed
    assert_same_run(tmp_path / "run", alone)


def test_two_processes_record_the_learners_log_probs_of_carried_samples_as_one(tmp_path: Path) -> None:
    """The decoupled objective needs a forward pass of the learner on all ranks before each update of the weights."""
    settings = ("objective.importance=decoupled", "objective.tis_cap=2")
    alone = ulorl.train(config(tmp_path / "alone", *settings))
    assert any(m["rollout/staleness_mean"] for m in alone.metrics if m.get("train/updates"))
    train(2, str(RECIPE), *SMALL, *settings, f"run.dir={tmp_path / 'run'}", "backend.kind=torchrun", "backend.ranks=2")
    assert_same_run(tmp_path / "run", alone.dir)


def started(run_dir: Path, steps: int, *arguments: str) -> subprocess.Popen[str]:
    """Start a run of two processes, and return when so many lines are logged."""
    process = subprocess.Popen(torchrun(2, "train", *arguments), stderr=subprocess.PIPE, text=True)
    metrics, deadline = run_dir / "metrics.jsonl", time.monotonic() + LIMIT
    while not metrics.exists() or len(metrics.read_text().splitlines()) < steps:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def pids_of_rank(agent: int, rank: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == agent and f"RANK={rank}" in (folder / "environ").read_text().split("\0"):
                found.append(int(folder.name))
    return found


def test_a_process_that_dies_ends_the_run_which_resumes_bit_for_bit(shared: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = [str(RECIPE), *SMALL, f"run.dir={run_dir}"]
    process = started(run_dir, 4, *arguments)  # step 3 is done: it is trained again from the checkpoint of step 2
    try:
        (pid,) = pids_of_rank(process.pid, 1)
        os.kill(pid, signal.SIGKILL)
        _, errors = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    assert process.returncode
    assert "learner-lost" in errors or "RuntimeError" in errors  # in the rollout, or in a collective
    assert checkpoint.step_of(checkpoint.latest(run_dir)) == 2
    train(2, *arguments)
    assert lines(run_dir) == lines(shared)
    assert samples(run_dir) == samples(shared)
    weights = "model/model.safetensors"
    assert (run_dir / weights).read_bytes() == (shared / weights).read_bytes()


def test_a_run_that_rank_0_refuses_ends_at_once(tmp_path: Path) -> None:
    arguments = ["train", str(RECIPE), *SMALL, f"run.dir={tmp_path / 'run'}", "model.path=nowhere"]
    done = subprocess.run(torchrun(2, *arguments), capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode
    assert done.stderr.count("error: ") == 1
    assert "forcefully" not in done.stderr  # as torchrun ends processes after 30 seconds


def test_a_signal_stops_all_at_one_boundary_and_one_process_resumes(alone: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = started(run_dir, 3, str(RECIPE), *SMALL, f"run.dir={run_dir}", "run.async_checkpoint=true")
    try:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    assert process.returncode, errors
    stopped = checkpoint.latest(run_dir)
    assert (stopped / "shards").is_dir()
    assert checkpoint.step_of(stopped) >= 2
    if checkpoint.step_of(stopped) < 4:
        run.resume(run_dir, ["backend.kind=local"])
    assert_same_run(run_dir, alone)


def test_what_torchrun_must_have_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refused(ErrorCode.CONFIG_CONFLICT, key="backend.kind"):
        ulorl.train(config(tmp_path / "run", "backend.kind=torchrun"))
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with refused(ErrorCode.CONFIG_CONFLICT, key="backend.kind"):
        ulorl.train(config(tmp_path / "run", "backend.kind=torchrun", "backend.ranks=4"))
    with refused(ErrorCode.CONFIG_CONFLICT, key="model.device"):
        ulorl.train(config(tmp_path / "run", "model.device=cuda:0"))
    assert not (tmp_path / "run").exists()
