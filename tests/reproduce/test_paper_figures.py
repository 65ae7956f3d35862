"""`ulorl reproduce fig4` and the like, end to end: real runs of the shipped tiny model in processes of their own."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from paths import QUICKSTART
from refusals import refused
from ulorl.cli.main import app
from ulorl.error_codes import ErrorCode
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
    return ["reproduce", name, "--recipe", str(QUICKSTART), "--out", str(out), "--seeds", "1", *SMALL, *more]


def test_figures_share_runs(tmp_path: Path) -> None:
    """table2 trains the baseline and then, with the target from it, DMMPTs; fig4 adds one run and repeats none. Each
    writes a page, a picture and a CSV file; a target is 80% of the baseline's entropy at the start."""
    result = CliRunner().invoke(app, command("table2", tmp_path))
    assert result.exit_code == 0, result.output
    folders = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert folders[0] == "all-tokens-seed0"
    assert len(folders) == 2
    before = {name: (tmp_path / "runs" / name / "metrics.jsonl").stat().st_mtime_ns for name in folders}
    sigma = float(folders[1].removeprefix("dmmpts-").removesuffix("-seed0"))
    rows = list(csv.DictReader((tmp_path / "table2.csv").read_text(encoding="utf-8").splitlines()))
    entropy = {
        int(row["step"]): float(row["value"])
        for row in rows
        if (row["arm"], row["metric"]) == ("without DMMPTs", "entropy/finished")
    }
    later = [entropy[step] for step in (2, 3)]  # two segments: from the second step on
    assert sigma == pytest.approx(0.8 * sum(later) / 2, abs=6e-4)

    result = CliRunner().invoke(app, command("fig4", tmp_path))
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "runs").iterdir())) == 3
    assert {name: (tmp_path / "runs" / name / "metrics.jsonl").stat().st_mtime_ns for name in folders} == before
    page = (tmp_path / "fig4.md").read_text(encoding="utf-8")
    assert page.count("**not resolved at this scale**") == 5  # of one seed nothing follows
    assert f"objective.mpt.sigma={sigma:g}" in page
    assert "](fig4.svg)" in page
    assert (tmp_path / "fig4.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert (tmp_path / "verdicts.md").read_text(encoding="utf-8").count("| [Figure 4") == 5


def test_stopped_and_continued(tmp_path: Path) -> None:
    """SIGTERM stops the runs in progress, which save what they have; the same command continues them to the end."""
    arguments = command("table2", tmp_path, "--sigma", "0.3", "--jobs", "2", "steps=20", "run.checkpoint_every=1")
    process = subprocess.Popen([sys.executable, "-m", "ulorl", *arguments], stderr=subprocess.PIPE, text=True)
    runs = [tmp_path / "runs" / name for name in ("all-tokens-seed0", "dmmpts-0.3-seed0")]
    deadline = time.monotonic() + 120
    while not all((run / "checkpoints").exists() for run in runs):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "The same command continues" in errors
    assert not any(finished(run) for run in runs)
    steps = [len((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) for run in runs]
    assert min(steps) > 1
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert [finished(run) for run in runs] == [20, 20]
    assert "resumes" in (tmp_path / "logs" / "all-tokens-seed0.log").read_text(encoding="utf-8")


def test_a_failed_run_names_its_log(tmp_path: Path) -> None:
    """A folder that `ulorl train` refuses ends the command with the run's own message and the path of its log."""
    taken = tmp_path / "runs" / "all-tokens-seed0"
    taken.mkdir(parents=True)
    (taken / "thesis.txt").write_text("mine", encoding="utf-8")
    log = tmp_path / "logs" / "all-tokens-seed0.log"
    with refused(ErrorCode.REPRODUCE_RUN_FAILED, file=log) as caught:
        CliRunner().invoke(app, command("table2", tmp_path, "--sigma", "0.3"), catch_exceptions=False)
    assert "not empty" in str(caught.value)
    assert [path.name for path in taken.iterdir()] == ["thesis.txt"]


def test_other_settings_are_refused(tmp_path: Path) -> None:
    """Runs of another recipe in the same folder are not mixed with this one's, and nothing is trained first."""
    arguments = command("table2", tmp_path, "--sigma", "0.3")
    assert CliRunner().invoke(app, arguments).exit_code == 0
    with refused(ErrorCode.RUN_FOLDER_TAKEN, key="objective.loss"):
        CliRunner().invoke(app, [*arguments, "objective.loss=cispo"], catch_exceptions=False)


def test_no_held_out_problems(tmp_path: Path) -> None:
    """Arms that cannot be compared are not trained."""
    with refused(ErrorCode.BENCH_INPUT, key="eval.data"):
        CliRunner().invoke(app, command("fig2", tmp_path, "eval.data={}"), catch_exceptions=False)
    assert not (tmp_path / "runs").exists()
