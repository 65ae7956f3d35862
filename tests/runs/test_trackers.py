"""What W&B, trackio, MLflow and TensorBoard have of a run, written and read back by the real libraries offline."""

from __future__ import annotations

import csv
import io
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import wandb_file
from refusals import refused
from ulorl.common.key_paths import flatten
from ulorl.config.loading import build
from ulorl.config.tree import Config
from ulorl.error_codes import ErrorCode
from ulorl.learner.update_result import Update
from ulorl.runs.guarded_tracker import MOST, GuardedTracker, load_tracked
from ulorl.runs.run_log import RunLog
from ulorl.runs.tracker import LONGEST_TEXT, SampleRow, sample_rows
from ulorl.runs.trackers import require_trackers
from ulorl.types import Finish, Group, Problem, Sample, Scored, Segment, Status, Tokens

SECRETS = {
    "WANDB_API_KEY": "aaaa1111bbbb2222cccc3333dddd4444eeee5555",
    "MLFLOW_TRACKING_PASSWORD": "secret-of-mlflow",
    "HF_TOKEN": "secret-of-the-hub",
    "OPENAI_API_KEY": "secret-of-a-client",
}


@dataclass
class Stored:
    """What a tracker has of one run."""

    runs: set[str] = field(default_factory=set)  # ids
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)  # flat or nested, as the tracker keeps it
    tables: dict[int, list[list[str]]] = field(default_factory=dict)  # step -> rows of cells as texts
    report: str = ""
    failed: bool | None = None  # None: the tracker does not keep it


def read_wandb(run_dir: Path) -> Stored:
    """A file for each start of the run; W&B's `sync` joins them by the id of the run."""
    stored = Stored()
    for path, records in wandb_file.finished_records(run_dir):
        for record in records:
            kind = record.WhichOneof("record_type")
            if kind == "run":
                stored.runs.add(record.run.run_id)
            if kind == "config":
                stored.config |= {item.key: json.loads(item.value_json) for item in record.config.update}
            if kind == "history":
                items = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                step = items.pop("step")
                table = {name: items.pop(name) for name in list(items) if name.startswith("samples/")}
                if table:
                    rows = json.loads((path.parent / "files" / table["samples/path"]).read_text())
                    stored.tables[step] = [list(map(str, row)) for row in (rows["columns"], *rows["data"])]
                for name, value in items.items():
                    if not name.startswith("_"):
                        stored.curves.setdefault(name, []).append((step, value))
            if kind == "artifact" and record.artifact.type == "report":
                stored.report = Path(record.artifact.manifest.contents[0].local_path).read_text()
            if kind == "exit":
                stored.failed = record.exit.exit_code != 0
    return stored


def read_trackio(run_dir: Path) -> Stored:
    from trackio.cas import blob_path
    from trackio.sqlite_storage import SQLiteStorage

    stored = Stored()
    (name,) = [name for name in SQLiteStorage.get_runs("p") if name.startswith(run_dir.name)]
    stored.runs.add(name)
    for entry in SQLiteStorage.get_logs("p", name):
        step = entry.pop("step")
        if table := entry.pop("samples", None):
            rows = table["_value"]
            stored.tables[step] = [list(rows[0]), *(list(map(str, row.values())) for row in rows)]
        for metric, value in entry.items():
            if metric != "timestamp":
                stored.curves.setdefault(metric, []).append((step, value))
    stored.config = SQLiteStorage.get_run_config("p", name)
    if found := SQLiteStorage.get_artifact_manifest("p", f"report-{name}", None):
        stored.report = blob_path("p", found["manifest"][0]["digest"]).read_text()
    return stored


def read_mlflow(run_dir: Path) -> Stored:
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("p")
    runs = client.search_runs([experiment.experiment_id])
    (run,) = [run for run in runs if run.info.run_name == run_dir.name]
    id = run.info.run_id
    curves = {
        name: [(metric.step, metric.value) for metric in client.get_metric_history(id, name)]
        for name in run.data.metrics
    }
    folder = Path(client.download_artifacts(id, ""))
    tables = {
        int(path.stem.removeprefix("step_")): list(csv.reader(io.StringIO(path.read_text(), newline="")))
        for path in folder.glob("samples/*.csv")
    }
    report = folder / "report.html"
    assert json.loads((folder / "config.json").read_text())["steps"] == 4
    return Stored(
        {run.info.run_id},
        curves,
        run.data.params,
        tables,
        report.read_text() if report.exists() else "",
        run.info.status == "FAILED",
    )


READERS: dict[str, Callable[[Path], Stored]] = {
    "wandb": read_wandb, "trackio": read_trackio, "mlflow": read_mlflow,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """trackio reads its folder when it is imported, so all tests of a process share it."""
    root = tmp_path_factory.mktemp("trackers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(root / "trackio"))
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_CACHE_DIR", str(root / "wandb"))
        patch.setenv("WANDB_DATA_DIR", str(root / "wandb"))
        patch.setenv("MLFLOW_TRACKING_URI", f"file:{root}/mlflow")
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # sqlite takes seconds to make its tables
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        yield root


def make_config(steps: int = 4, **log: Any) -> Config:
    return build({"steps": steps, "data": {"kind": "countdown", "size": 8}, "log": {"project": "p", **log}})


def piped() -> Console:
    return Console(file=io.StringIO(), width=500)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def decode(tokens: Tokens) -> str:
    return bytes(tokens.tolist()).decode()


def group(number: int, texts: Sequence[str], versions: Sequence[int] = (3, 4)) -> Group:
    """Each text in a segment for each version."""
    members = []
    for index, text in enumerate(texts):
        tokens, id = np.frombuffer(text.encode(), np.uint8).astype(np.int32), 10 * number + index
        parts = np.array_split(tokens, len(versions))
        segments = tuple(
            Segment(id, part, np.zeros(len(part), np.float32), np.full(len(part), version, np.int32), Finish.EOS)
            for part, version in zip(parts, versions, strict=True)
        )
        prompt = np.frombuffer(b"1+1=", np.uint8).astype(np.int32)
        members.append(Scored(Sample(id, number, prompt, segments, Status.COMPLETE), float(index), text))
    return Group(number, Problem(f"p-{number}", "1+1"), tuple(members))


def play(
    run_dir: Path,
    config: Config,
    steps: Sequence[int],
    resume: int | None = None,
    factor: float = 1,
    stops: bool = False,
) -> str:
    """Log steps as a run does, with a table at each; the report comes after step 4. Returns what was printed."""
    console = piped()
    with RunLog(run_dir, config, resume, console) as log:
        for step in steps:
            log.samples(step, [group(step, ["a|b\nc", 'say "é",'])], decode, Update())
            log.step({"step": step, "reward/mean": factor * step / 8, "time/step": 2, "entropy/mean": float("nan")})
        if stops:
            raise KeyError
        if 4 in steps:
            (run_dir / "report.html").write_text("<p>the report</p>")
            log.report(run_dir / "report.html")
    return printed(console)


@pytest.mark.parametrize("name", READERS)
def test_a_resumed_run_continues_with_no_step_twice(name: str, tmp_path: Path) -> None:
    """It stops after step 3, and its checkpoint is of step 2: step 3 is made again, and not sent again."""
    run_dir, config = tmp_path / f"run-{name}", make_config(**{name: True})
    with pytest.raises(KeyError):
        play(run_dir, config, (1, 2, 3), stops=True)
    first = READERS[name](run_dir)
    assert first.failed in (True, None)
    assert "did not" not in play(run_dir, make_config(**{name: True}), (3, 4), resume=2, factor=100)
    stored = READERS[name](run_dir)
    assert stored.runs == {load_tracked(run_dir, name).id} == first.runs
    assert stored.curves == {
        "reward/mean": [(1, 0.125), (2, 0.25), (3, 0.375), (4, 50.0)],
        "time/step": [(1, 2), (2, 2), (3, 2), (4, 2)],
    }
    rows = [
        ["40", "p-4", "1+1=", "a|b\nc", "0.0", "complete", "5", "3, 4"],
        ["41", "p-4", "1+1=", 'say "é",', "1.0", "complete", "9", "3, 4"],
    ]
    assert stored.tables[4] == [list(SampleRow._fields), *rows]
    assert sorted(stored.tables) == [1, 2, 3, 4]
    assert stored.report == "<p>the report</p>"
    assert stored.failed in (False, None)
    assert flatten(stored.config)["rollout.group"] in (config.rollout.group, str(config.rollout.group))


def test_tensorboard_has_texts_beside_the_curves(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    config = make_config(samples=1)
    play(tmp_path, config, (1, 2))
    time.sleep(1 - time.time() % 1)  # TensorBoard sorts its files by the second in which they begin
    play(tmp_path, config, (2, 3, 4), resume=1)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()

    def tensors(tag: str) -> list[tuple[int, Any]]:
        return [(e.step, tensor_util.make_ndarray(e.tensor_proto)) for e in events.Tensors(tag)]

    assert [(step, float(value)) for step, value in tensors("reward/mean")] == [
        (1, 0.125),
        (2, 0.25),
        (3, 0.375),
        (4, 0.5),
    ]
    assert [step for step, _ in tensors("samples")] == [1, 2, 3, 4]
    table = [[cell.decode() for cell in row] for row in tensors("samples")[-1][1]]
    assert table == [list(SampleRow._fields), ["40", "p-4", "1+1=", "a|b\nc", "0.0", "complete", "5", "3, 4"]]
    assert json.loads(tensors("config")[0][1][0].decode().strip("`"))["steps"] == 4
    assert tensors("report")[0][1][0] == b"`report.html` in the folder of the run"
    assert events.SummaryMetadata("samples").plugin_data.plugin_name == "text"


def test_a_database_of_mlflow_needs_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra has what MLflow needs for its default, mlflow.db in the working folder."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    run_dir = tmp_path / "run"
    play(run_dir, make_config(mlflow=True), (1, 4))
    assert (tmp_path / "mlflow.db").exists()
    stored = read_mlflow(run_dir)
    assert stored.curves["reward/mean"] == [(1, 0.125), (4, 0.5)]
    assert stored.report == "<p>the report</p>"


def test_no_tracker_has_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: Path) -> None:
    import trackio.utils

    for variable, secret in SECRETS.items():
        monkeypatch.setenv(variable, secret)
    run_dir = tmp_path / "run-secrets"
    said = play(run_dir, make_config(wandb=True, trackio=True, mlflow=True), (1, 4))
    assert "did not" not in said
    of_trackio = Path(trackio.utils.TRACKIO_DIR)  # elsewhere if another test imported it, as TRL does
    folders = (run_dir, offline, of_trackio)
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert {".wandb", ".html", ".csv", ".json", ".db"} <= {path.suffix for path in files}
    assert not [
        (path, name) for path in files for name, secret in SECRETS.items() if secret.encode() in path.read_bytes()
    ]


class Flaky:
    """Fails at the calls whose numbers are given, and keeps the steps of the others."""

    id = "1"

    def __init__(self, *failures: int) -> None:
        self.failures, self.calls, self.steps = failures, 0, list[int]()

    def write(self, step: int, metrics: Mapping[str, float | int], samples: Sequence[SampleRow]) -> None:  # noqa: ARG002
        self.calls += 1
        if self.calls in self.failures:
            raise ConnectionError("https://me:hidden@host refused secret-of-mlflow")
        self.steps.append(step)

    def report(self, path: Path) -> None:
        self.write(int(path.stem), {}, [])

    def close(self, *, failed: bool) -> None:
        assert not failed
        raise RuntimeError("no answer")


def test_a_failure_is_said_once_and_its_step_sent_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "secret")  # with which the password begins
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret-of-mlflow")
    flaky, said, done = Flaky(2, 3), list[str](), list[int]()
    guarded = GuardedTracker("T", flaky, said.append, last_step=1, on_step=done.append)
    for step in range(1, 6):
        guarded.write(step, {}, [])
    assert flaky.steps == done == [2, 3, 4, 5]  # 1 is there already; 3 failed with 3 and 4, and came with 5
    (message,) = said
    assert message.startswith("T did not take step 3 (ConnectionError: https://***@host refused ***); the run goes on")
    guarded.close(failed=False)
    assert said[1].startswith("T did not close (RuntimeError: no answer)")


def test_a_tracker_that_keeps_failing_is_left_out() -> None:
    flaky, said = Flaky(*range(1, 99)), list[str]()
    guarded = GuardedTracker("T", flaky, said.append)
    for step in range(10):
        guarded.write(step, {}, [])
    guarded.report(Path("11"))
    assert flaky.calls == MOST
    assert len(said) == 2
    assert "failed 3 times in a row" in said[1]


def test_a_store_that_is_lost_during_a_run_does_not_stop_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's own error, said with the first step that it did not take."""
    store = tmp_path / "store"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{store}")
    console = piped()
    with RunLog(tmp_path / "run", make_config(mlflow=True), console=console) as log:
        log.step({"step": 1, "reward/mean": 0.5})
        shutil.rmtree(store)
        for step in (2, 3, 4, 5):
            log.step({"step": step, "reward/mean": 0.5})
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 5
    said = [line for line in printed(console).splitlines() if "MLflow" in line]
    assert said[0].startswith("MLflow did not take step 2 (")
    assert len(said) == 2


def test_a_tracker_that_does_not_start_refuses_a_new_run_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nothing://me:secret@host")
    config = make_config(mlflow=True)
    with refused(ErrorCode.TRACKER_UNAVAILABLE, key="log.mlflow") as caught:
        RunLog(tmp_path, config, console=piped())
    assert "secret" not in str(caught.value)
    said = play(tmp_path, config, (3, 4), resume=2)
    assert "log.mlflow=true: MLflow did not start (" in said
    assert "The run goes on without it" in said


@pytest.mark.parametrize("name", READERS)
def test_a_missing_package_is_refused_with_what_to_install(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)  # as if nothing were installed
    config = make_config(**{name: True})
    for attempt in (lambda: require_trackers(config.log), lambda: RunLog(tmp_path, config, console=piped())):
        with refused(ErrorCode.TRACKER_UNAVAILABLE, key=f"log.{name}"):
            attempt()
    require_trackers(make_config().log)


def test_the_run_of_an_earlier_version_is_continued(tmp_path: Path) -> None:
    (tmp_path / "wandb_id").write_text("abcd1234")
    assert load_tracked(tmp_path, "wandb").id == "abcd1234"
    assert load_tracked(tmp_path, "mlflow").id == ""


def test_samples_come_from_all_groups_and_are_cut() -> None:
    groups = [group(1, ["a", "b", "c"]), group(2, ["x" * 9000]), group(3, []), group(4, ["d", "e"], [5])]
    rows = sample_rows(groups, decode, 4)
    assert [row.sample for row in rows] == [10, 20, 40, 11]
    assert rows[1].output == "x" * 2000 + " [5000 characters] " + "x" * 2000
    assert LONGEST_TEXT == 4000
    assert [row.versions for row in rows] == ["3", "3, 4", "5", "3"]  # of one token only one segment has any
    assert sample_rows(groups, decode, 0) == sample_rows([], decode, 4) == []
