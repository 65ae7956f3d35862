"""`ulorl watch`: what is new of a run, and whom the server answers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from urllib.request import urlopen

import pytest

from refusals import refused
from report_runs import METRICS, data_of, make_run, sample
from ulorl.error_codes import ErrorCode
from ulorl.report import live_run
from ulorl.report.live_run import BEGINNING, Cursor, live_page, new_lines, news, samples_of
from ulorl.report.watch_server import WatchServer


def append(run_dir: Path, text: str) -> None:
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(text)


def test_only_new_complete_lines_are_read(tmp_path: Path) -> None:
    path = make_run(tmp_path, METRICS[:2]) / "metrics.jsonl"
    entries, cursor, restarted = new_lines(path, BEGINNING)
    assert [one["step"] for one in entries] == [0, 1]
    assert not restarted
    append(tmp_path, '{"step": 2, "rew')  # a line in the middle of its write
    assert new_lines(path, cursor) == ([], cursor, False)
    append(tmp_path, 'ard/mean": 0.5, "train/loss": NaN}\n')
    entries, cursor, _ = new_lines(path, Cursor.parse(str(cursor)))
    assert entries == [{"step": 2, "reward/mean": 0.5, "train/loss": None}]
    append(tmp_path, "nonsense\n")
    with refused(ErrorCode.RUN_DAMAGED, record="metrics.jsonl:4"):
        new_lines(path, cursor)


def test_a_run_that_went_back_is_sent_as_a_whole(tmp_path: Path) -> None:
    """A resume removes the lines after its checkpoint. The file may have its old length again before it is read."""
    path = make_run(tmp_path, METRICS) / "metrics.jsonl"
    _, cursor, _ = new_lines(path, BEGINNING)
    first, second, third = path.read_text().splitlines(keepends=True)
    path.write_text(first + second + third.replace("0.6", "0.7"))
    entries, _, restarted = new_lines(path, cursor)
    assert restarted
    assert [one["step"] for one in entries] == [0, 1, 2]
    path.write_text(first)
    assert new_lines(path, cursor)[2]
    assert new_lines(path, Cursor.parse("999999999999999-1"))[2]
    assert Cursor.parse("../etc") == Cursor.parse(f"{'9' * 5000}-1") == BEGINNING


def test_the_page_and_the_news_have_the_same_rows(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, METRICS[:2], {1: [sample(0, "a", 1, [1], [0])]})
    data = data_of(live_page(run_dir))
    assert data["live"] is True
    assert data["runs"][0]["columns"]["step"] == [0, 1]
    assert news(run_dir, Cursor.parse(data["cursor"]))["rows"] == []
    make_run(run_dir, METRICS, {2: [sample(1, "ab", 0, [2], [0]), sample(2, "abcd", 1, [4], [1])]})
    found = news(run_dir, Cursor.parse(data["cursor"]))
    assert [one["step"] for one in found["rows"]] == [2]
    assert found["rows"][0]["length/p50"] == 3  # of 2 and 4 tokens
    assert [one["sample"] for one in found["samples"]] == [1, 2]
    assert found["run"]["evaluations"][-1]["value"] == 0.42
    assert found["counts"] == {"stored_steps": [1, 2]}
    assert not found["finished"]


def test_a_chosen_step_has_its_samples_whole(tmp_path: Path) -> None:
    long = "x" * 50_000
    run_dir = make_run(tmp_path, samples={3: [sample(0, long, 1, [50_000], [0])]})
    assert samples_of(run_dir, 3)[0]["pieces"] == [{"version": 0, "tokens": 50_000, "text": long}]
    assert samples_of(run_dir, 4) == []


def test_only_the_first_bytes_of_a_step_are_sent_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_run, "STEP_LIMIT", 15_000)
    run_dir = make_run(tmp_path, samples={3: [sample(i, "x" * 10_000, 1, [10_000], [0]) for i in range(3)]})
    assert [one["pieces"][0].get("left_out", 0) for one in samples_of(run_dir, 3)] == [0, 6000, 6000]  # 4000 are kept


def test_a_reader_without_a_cursor_gets_samples_of_a_few_steps(tmp_path: Path) -> None:
    samples = {step: [sample(step, "a", 1, [1], [0])] for step in range(250)}
    found = news(make_run(tmp_path, [{"step": step} for step in range(250)], samples), BEGINNING)
    assert len(found["rows"]) == 250
    assert len({one["step"] for one in found["samples"]}) == 100


def test_a_new_start_of_a_run_is_noticed(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    data = data_of(live_page(run_dir))
    cursor = Cursor.parse(data["cursor"])
    assert news(run_dir, cursor)["start"] == data["start"]
    (run_dir / "environment.json").write_text('{"torch": "2"}')
    assert news(run_dir, cursor)["start"] != data["start"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WatchServer]:
    run_dir = make_run(tmp_path / "run", samples={1: [sample(0, "a", 1, [1], [0])]})
    with WatchServer(run_dir, 0) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


def answer(server: WatchServer, path: str, host: str = "") -> tuple[int, bytes]:
    connection = HTTPConnection(*server.server_address)
    connection.putrequest("GET", path, skip_host=True)
    connection.putheader("Host", host or server.hosts[0])
    connection.endheaders()
    found = connection.getresponse()
    return found.status, found.read()


def test_the_server_answers_under_its_own_name_only(server: WatchServer) -> None:
    port = server.server_port
    assert answer(server, "/news")[0] == 200
    assert answer(server, "/news", f"localhost:{port}")[0] == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port}.evil.example"):
        assert answer(server, "/news", host)[0] == 421, host
    assert server.server_address[0] == "127.0.0.1"


def test_the_server_opens_no_file_that_a_request_names(server: WatchServer) -> None:
    (server.run_dir.parent / "secret").write_text("secret")
    for path in ("/../secret", "/%2e%2e/secret", "/metrics.jsonl", "/samples?step=../1", "/samples?step=", "/samples",
                 f"/samples?step={'9' * 5000}"):  # fmt: skip
        assert answer(server, path)[0] == 404, path
    status, body = answer(server, "/samples?step=1")
    assert (status, json.loads(body)[0]["sample"]) == (200, 0)
    assert json.loads(answer(server, "/samples?step=7")[1]) == []
    (server.run_dir / "samples" / "step_000002.jsonl").write_text('{"sample": 1, "reward": NaN, "tokens": 1e999}\n')
    (found,) = json.loads(answer(server, "/samples?step=2")[1])
    assert found["reward"] is found["tokens"] is None
    (server.run_dir / "samples" / "step_000003.jsonl").symlink_to("removed")
    assert answer(server, "/samples?step=3")[0] == 503
    (server.run_dir / "metrics.jsonl").write_text("nonsense\n")
    status, body = answer(server, "/news")
    assert status == 500
    assert "metrics.jsonl, line 1" in json.loads(body)["error"]


def test_what_cannot_be_watched_is_refused(server: WatchServer, tmp_path: Path) -> None:
    with refused(ErrorCode.RUN_NOT_FOUND, file=tmp_path / "nowhere"):
        WatchServer(tmp_path / "nowhere", 0)
    with refused(ErrorCode.COMMAND_LINE, key="--port"):
        WatchServer(server.run_dir, server.server_port)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command(number: signal.Signals, tmp_path: Path) -> None:
    """Also where SIGINT is ignored at the start, as by what a shell starts in the background."""
    run_dir = make_run(tmp_path / "run")
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); os.execv(sys.executable, sys.argv[1:])"
    )
    command = [sys.executable, "-c", ignoring, sys.executable, "-m", "ulorl", "watch", str(run_dir), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stderr
            url = process.stdout.readline().split()[0]
            assert data_of(urlopen(url).read().decode())["runs"][0]["name"] == "run"
            process.send_signal(number)
            assert process.wait(30) == 0
            assert process.stderr.read() == ""
        finally:
            process.kill()
