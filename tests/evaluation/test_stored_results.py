"""The tables of a folder have the results of all evaluations in it."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from refusals import refused
from ulorl.common import folder_lock
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.evaluation import stored_results
from ulorl.evaluation.result_tables import SuiteResult, all_tables, as_entry, as_json, of_entry
from ulorl.evaluation.stored_results import LOCK, store_results, write_tables
from ulorl.evaluation.summary import Answer, summarise
from ulorl.evaluation.token_entropy import EntropyFigures


def result(model: str, rewards: list[float | None], *, entropy: bool = False) -> SuiteResult:
    """One answer to each problem."""
    answers = [Answer(np.arange(4, dtype=np.int32), False, reward, "7") for reward in rewards]
    figures = EntropyFigures(0.25, 0.5, None) if entropy else None
    return SuiteResult(model, "s", 8, "avg@1", summarise(answers, 1), figures, tuple("abcd"[: len(rewards)]))


def stored(out: Path, model: str, *results: SuiteResult) -> Path:
    folder = out / model / "s"
    folder.mkdir(parents=True)
    store_results(folder, results)
    return folder


def test_a_stored_result_is_the_same_result() -> None:
    for one in (result("m", [1.0, 0.0, 1.0], entropy=True), result("one problem", [1.0]), result("none", [None, None])):
        entry = as_entry(one)
        assert as_entry(of_entry(json.loads(json.dumps(entry, allow_nan=False)))) == json.loads(json.dumps(entry)) | {
            "pass_at": one.summary.pass_at, "by_problem": one.summary.by_problem,
        }  # fmt: skip
    same = result("m", [1.0, 0.0, 1.0], entropy=True)
    assert of_entry(json.loads(json.dumps(as_entry(same)))) == same


def test_two_commands_at_the_same_time_have_both_results_in_the_tables(tmp_path: Path) -> None:
    """Sixteen commands end at the same time: whichever writes last, the tables have all."""

    def command(number: int) -> None:
        write_tables(tmp_path, [stored(tmp_path, f"m{number:02d}", result(f"m{number:02d}", [1.0, 0.0, 1.0]))])

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(command, range(16)))
    found = json.loads((tmp_path / "results.json").read_text())
    assert sorted(one["model"] for one in found["results"]) == [f"m{number:02d}" for number in range(16)]
    assert len(found["differences"]) == 15


def test_the_evaluations_of_the_command_come_first(tmp_path: Path) -> None:
    a, b, c = (result(name, [1.0, 0.0, 1.0]) for name in "abc")
    folders = [stored(tmp_path, one.model, one) for one in (a, b, c)]
    write_tables(tmp_path, [folders[2], folders[1]])
    assert (tmp_path / "tables.md").read_text() == all_tables([c, b, a]) + "\n"
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(as_json([c, b, a])))


@pytest.mark.parametrize("text", ["", "{", "[3]", "[{}]", '{"model": 1}', "null"])
def test_results_that_cannot_be_read_are_left_out_with_a_warning(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = result("good", [1.0, 0.0])
    first = stored(tmp_path, "good", good)
    (stored(tmp_path, "bad", good) / "results.json").write_text(text)
    with caplog.at_level(logging.WARNING):
        write_tables(tmp_path, [first])
    assert (tmp_path / "tables.md").read_text() == all_tables([good]) + "\n"
    assert str(tmp_path / "bad" / "s" / "results.json") in caplog.text


def test_a_lock_that_nobody_returns_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_results, "WAIT", 0.1)
    folder = stored(tmp_path, "m", result("m", [1.0, 0.0]))
    busy = UserError("busy", code=ErrorCode.EVALUATION_LOCKED)
    with (
        folder_lock.locked(tmp_path / LOCK, busy=busy, fix=""),
        refused(ErrorCode.EVALUATION_LOCKED, file=tmp_path),
    ):
        write_tables(tmp_path, [folder])
    assert not (tmp_path / "tables.md").exists()
