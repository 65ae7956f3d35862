"""Whole runs under torchrun: two processes share the learner, and the run equals one of a single process."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
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
OWN = ("mismatch/", "train/", "entropy/", "importance/", "mpt/")  # sums in another order


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


@pytest.mark.parametrize("sequence", [1, 2])
def test_two_processes_train_as_one(alone: Path, tmp_path: Path, sequence: int) -> None:
    kind = ["backend.kind=torchrun", "backend.ranks=2"] if sequence == 1 else []  # torchrun is noticed without them
    train(2, str(RECIPE), *SMALL, f"run.dir={tmp_path / 'run'}", f"optim.sequence_parallel={sequence}", *kind)
    assert_same_run(tmp_path / "run", alone)


def test_a_signal_stops_all_at_one_boundary_and_one_process_resumes(alone: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = ["train", str(RECIPE), *SMALL, f"run.dir={run_dir}", "run.async_checkpoint=true"]
    process = subprocess.Popen(torchrun(2, *arguments), stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + LIMIT
        while not (run_dir / "metrics.jsonl").exists() or len((run_dir / "metrics.jsonl").read_text().splitlines()) < 3:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
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
    assert not (tmp_path / "run").exists()
