"""A run that an earlier version left behind can still be used: resumed, reported on, evaluated.

tests/fixtures/stored_run holds such a run, its model and its data, and what the version that wrote it got when it went
on (expected.json); make.py there says how they were made. Nothing in that folder changes any more: when a test here
fails, then later code reads old files differently. Counts and texts are exact. Floats are compared to 1e-5, because
another processor's matrix kernels round differently.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from paths import FIXTURES
from ulorl.cli.main import app
from ulorl.verifier.pairs import read_pairs, write_pairs

STORED = FIXTURES / "stored_run"
EXPECTED = json.loads((STORED / "expected.json").read_text(encoding="utf-8"))
CHECKPOINT = Path("run", "checkpoints", "step_000002")
CLOCK = ("time/", "checkpoint/", "rollout/tokens_per_second")  # metrics that differ between equal runs
ROUNDING = 1e-5  # of mismatch/*, nats: these metrics are nothing but how differently two kernels round
Lines = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def _copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The paths in the stored configuration are relative to the folder that holds the run."""
    shutil.copytree(STORED, tmp_path / "stored", ignore=shutil.ignore_patterns("make.py", "expected.json"))
    monkeypatch.chdir(tmp_path / "stored")


def ulorl(*arguments: str) -> str:
    """What the command printed."""
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


NEW = ("advantage", "token_values")  # what today's version stores besides of a sample


def lines(path: str | Path) -> Lines:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_a_resumed_run_goes_on_as_the_version_that_stored_it() -> None:
    before = lines("run/metrics.jsonl")
    said = ulorl("train", "--resume", "run", "steps=4")
    assert "run resumes, from step 2 of 4" in said
    metrics = lines("run/metrics.jsonl")
    assert metrics[:3] == before
    assert [m["step"] for m in metrics] == [0, 1, 2, 3, 4]
    for expected, found in zip(EXPECTED["metrics"], metrics[3:], strict=True):
        same_metrics(expected, {name: value for name, value in found.items() if not name.startswith(CLOCK)})
    for name, entries in EXPECTED["samples"].items():
        found = lines(Path("run", "samples", name))
        assert [{key: one[key] for key in one if key not in NEW} for one in found] == entries, name
    table = [line.strip() for line in said.splitlines()]
    for label, value in EXPECTED["summary"]:
        assert any(line.startswith(f"{label} ") and line.endswith(f" {value}") for line in table), (label, said)
    assert json.loads(Path("run/finished.json").read_text()) == {"steps": 4}
    assert [path.name for path in sorted(Path("run/checkpoints").iterdir())] == ["step_000002", "step_000004"]


def same_metrics(expected: dict[str, Any], found: dict[str, Any]) -> None:
    assert found.keys() >= expected.keys(), expected["step"]  # a later version may have more metrics
    for name, value in expected.items():
        if isinstance(value, float):
            tolerance = ROUNDING if name.startswith("mismatch/") else 1e-7
            assert found[name] == pytest.approx(value, rel=1e-5, abs=tolerance), (expected["step"], name)
        else:
            assert found[name] == value, (expected["step"], name)


def test_it_goes_on_from_the_pools_of_the_checkpoint() -> None:
    """Samples that were under way, and samples that waited for their siblings, are released by the resumed run with the
    tokens that they had, still marked with the old versions."""
    state = json.loads((CHECKPOINT / "state.json").read_text())
    unfinished = {sample["id"]: sample for sample in state["samples"] if sample["status"] == "unfinished"}
    waiting = {member["id"]: member for group in state["groups"] for member in group["members"]}
    assert unfinished
    assert waiting
    ulorl("train", "--resume", "run", "steps=3")
    first = lines("run/metrics.jsonl")[3]
    rollout = json.loads(Path("run/config.json").read_text())["rollout"]
    assert first["step"] == 3
    assert first["rollout/in_flight"] == len(unfinished) + rollout["prompts"] * rollout["group"]
    released = {sample["sample"]: sample for sample in lines("run/samples/step_000003.jsonl")}
    continued, waited = released.keys() & unfinished.keys(), released.keys() & waiting.keys()
    assert continued
    assert waited
    for id in continued:
        stored = [tokens for tokens, _ in unfinished[id]["segments"]]
        segments = released[id]["segments"]
        assert [segment["tokens"] for segment in segments[: len(stored)]] == stored
        assert len(segments) == len(stored) + 1
        assert segments[-1]["version"] == state["counters"]["version"] > segments[0]["version"]
    for id in waited:
        assert {name: released[id][name] for name in ("reward", "answer")} == {
            name: waiting[id][name] for name in ("reward", "answer")
        }
        assert released[id]["output"] == waiting[id]["text"]


def test_a_run_without_steps_left_writes_the_model_of_its_checkpoint() -> None:
    """The run was killed after its last checkpoint, before it was finished: the resumed run makes no step, and writes
    the model that the checkpoint holds."""
    Path("run/finished.json").unlink()
    model = Path("run/model/model.safetensors")
    stored = load_file(model)
    shutil.rmtree("run/model")
    assert "from step 2 of 2" in ulorl("train", "--resume", "run")
    found = load_file(model)
    assert found.keys() == stored.keys()
    assert all((found[name] == stored[name]).all() for name in stored)
    assert [m["step"] for m in lines("run/metrics.jsonl")] == [0, 1, 2]


def test_the_recipe_still_makes_this_run() -> None:
    """The configuration that the recipe gives today is the stored one: the same command takes the run for finished, and
    with more steps continues it."""
    done = CliRunner().invoke(app, ["train", "recipe.toml"])
    assert "run holds a run already: all 2 steps are done" in str(done.exception)
    assert "run holds this run, unfinished" in ulorl("train", "recipe.toml", "steps=3")


def test_a_report_is_written() -> None:
    assert ulorl("report", "run").strip() == str(Path("run", "report.html"))
    page = Path("run/report.html").read_text(encoding="utf-8")
    (run,) = json.loads(page.partition('id="data">')[2].partition("</script>")[0])["runs"]
    accuracies = [m["eval/accuracy"] for m in lines("run/metrics.jsonl") if "eval/accuracy" in m]
    assert [value for value in run["columns"]["eval/accuracy"] if value is not None] == pytest.approx(accuracies, 1e-5)
    assert len(run["evaluations"]) == 2


def test_the_stored_model_is_evaluated_as_it_was() -> None:
    expected = EXPECTED["eval"]
    assert ulorl("eval", "run", "--json", "eval.json") == expected["printed"]
    found = json.loads(Path("eval.json").read_text())
    assert found == {
        name: pytest.approx(value) if isinstance(value, float) or name == "interval" else value
        for name, value in expected["json"].items()
    }
    assert found["accuracy"] == lines("run/metrics.jsonl")[-1]["eval/accuracy"]  # with which the run ended


def test_pairs_of_a_verifier_read_back_equal() -> None:
    pairs = read_pairs(["pairs.jsonl"])
    assert [asdict(pair) for pair in pairs] == lines("pairs.jsonl")
    assert read_pairs(["pairs.parquet"]) == pairs
    write_pairs(pairs, Path("again.jsonl"))
    assert Path("again.jsonl").read_bytes() == Path("pairs.jsonl").read_bytes()
