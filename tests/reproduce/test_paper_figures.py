"""`ulorl reproduce fig4` and the like, end to end: real runs of the shipped tiny model in processes of their own."""

from __future__ import annotations

import csv
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from paths import COUNTDOWN
from refusals import refused
from ulorl.cli.main import app
from ulorl.error_codes import ErrorCode
from ulorl.reproduce.arm_runs import Trainer
from ulorl.reproduce.arms import baseline
from ulorl.runs.run_folder import finished

SMALL = [
    "steps=3",
    "rollout.prompts=3",
    "rollout.group=4",
    "rollout.max_tokens=32",
    "data.size=40",
    "eval.data.size=8",
    "eval.problems=4",
    "engine.slots=32",
    "model.threads=1",
]


def command(name: str, out: Path, *more: str) -> list[str]:
    """Return a command with one seed."""
    return ["reproduce", name, "--recipe", str(COUNTDOWN), "--out", str(out), "--seeds", "1", *SMALL, *more]


def test_figures_share_runs(tmp_path: Path) -> None:
    """table2 trains the baseline and then, with the target from it, DMMPTs; fig4 adds one run and repeats none. Each
    writes a page, a picture and a CSV file; the target is the baseline's entropy at the start. Runs with other
    settings are not mixed with them."""
    result = CliRunner().invoke(app, command("table2", tmp_path))
    assert result.exit_code == 0, result.output
    folders = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert folders[0] == "all-tokens-seed0"
    assert len(folders) == 2
    before = {name: (tmp_path / "runs" / name / "metrics.jsonl").stat().st_mtime_ns for name in folders}
    page = (tmp_path / "table2.md").read_text(encoding="utf-8")
    assert "count both errors" in page
    assert "seeds only" not in page
    sigma = float(folders[1].removeprefix("dmmpts-").removesuffix("-seed0"))
    rows = list(csv.DictReader((tmp_path / "table2.csv").read_text(encoding="utf-8").splitlines()))
    entropy = {
        int(row["step"]): float(row["value"])
        for row in rows
        if (row["arm"], row["metric"]) == ("without DMMPTs", "entropy/finished")
    }
    later = [entropy[step] for step in (2, 3)]  # two segments: from the second step on
    assert sigma == pytest.approx(sum(later) / 2, rel=6e-3)

    by_problem = list(csv.DictReader((tmp_path / "table2_problems.csv").read_text(encoding="utf-8").splitlines()))
    assert len(by_problem) == 2 * 2 * 4  # arms, evaluations, problems
    for one in (row for row in rows if row["metric"] == "eval/accuracy"):
        same = [row for row in by_problem if (row["arm"], row["step"]) == (one["arm"], one["step"])]
        assert float(one["value"]) == sum(int(row["right"]) / int(row["scored"]) for row in same) / 4

    shutil.rmtree(tmp_path / "runs" / folders[0] / "evaluations")  # an earlier version stored none
    result = CliRunner().invoke(app, command("fig4", tmp_path))
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "runs").iterdir())) == 3
    assert {name: (tmp_path / "runs" / name / "metrics.jsonl").stat().st_mtime_ns for name in folders} == before
    page = (tmp_path / "fig4.md").read_text(encoding="utf-8")
    assert "**Over seeds only are the intervals of accuracy and pass@k of these arms" in page
    assert "differences from them: all tokens.**" in page
    assert page.count("**not resolved at this scale**") == 4  # of one seed nothing follows
    assert f"objective.mpt.sigma={sigma:g}" in page
    assert "](fig4.svg)" in page
    assert (tmp_path / "fig4.svg").read_text(encoding="utf-8").startswith("<?xml")
    verdicts = (tmp_path / "verdicts.md").read_text(encoding="utf-8")
    assert (verdicts.count("](fig4.md)"), verdicts.count("](table2.md)")) == (4, 2)

    for other in ("objective.loss=cispo", "optim.lr=0.5"):  # the second may change on resume, but these are finished
        with refused(ErrorCode.RUN_FOLDER_TAKEN, key=other.partition("=")[0]):
            CliRunner().invoke(app, command("table2", tmp_path, other), catch_exceptions=False)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir())[:2] == folders


def test_stopped_and_continued(tmp_path: Path) -> None:
    """SIGTERM stops the run in progress, which saves what it has; the same command continues it and trains the next."""
    arguments = command("table2", tmp_path, "--sigma", "0.3", "--jobs", "1", "steps=8", "run.checkpoint_every=1")
    process = subprocess.Popen([sys.executable, "-m", "ulorl", *arguments], stderr=subprocess.PIPE, text=True)
    first, second = (tmp_path / "runs" / name for name in ("all-tokens-seed0", "dmmpts-0.3-seed0"))
    deadline = time.monotonic() + 120
    while not (first / "checkpoints").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "The same command continues" in errors
    assert finished(first) is None
    assert not second.exists()
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert (finished(first), finished(second)) == (8, 8)
    assert "resumes" in (tmp_path / "logs" / "all-tokens-seed0.log").read_text(encoding="utf-8")


def test_a_failed_run_names_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that fails ends the command with the run's own last lines and the path of its log."""
    monkeypatch.setattr(Trainer, "command", lambda *_: ["train", str(tmp_path / "missing.toml")])
    trainer = Trainer((COUNTDOWN,), (), tmp_path, seeds=1, jobs=1)
    log = tmp_path / "logs" / "all-tokens-seed0.log"
    with refused(ErrorCode.REPRODUCE_RUN_FAILED, file=log) as caught:
        trainer.train([baseline()])
    assert "missing.toml" in str(caught.value)
    assert "missing.toml" in log.read_text(encoding="utf-8")


def test_equal_arms_are_refused(tmp_path: Path) -> None:
    """With the bound of clip-higher for all arms, the arm clip-higher is the baseline."""
    with refused(ErrorCode.BENCH_INPUT, key="objective.clip_high"):
        CliRunner().invoke(app, command("entropy", tmp_path, "objective.clip_high=0.28"), catch_exceptions=False)
    assert not (tmp_path / "runs").exists()


def test_no_held_out_problems(tmp_path: Path) -> None:
    """Arms that cannot be compared are not trained."""
    with refused(ErrorCode.BENCH_INPUT, key="eval.data"):
        CliRunner().invoke(app, command("fig2", tmp_path, "eval.data={}"), catch_exceptions=False)
    assert not (tmp_path / "runs").exists()
