"""Whose run a folder holds: found again, distinguished by its keys, locked, emptied without a gap."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ulorl
from paths import COUNTDOWN
from refusals import refused
from ulorl.common import folder_lock
from ulorl.error_codes import ErrorCode
from ulorl.runs import run_folder

RECIPE = COUNTDOWN


def config(run_dir: Path, *overrides: str) -> ulorl.Config:
    return ulorl.load([RECIPE], [f"run.dir={run_dir}", *overrides])


def begun(run_dir: Path, *overrides: str) -> ulorl.Config:
    cfg = config(run_dir, *overrides)
    run_dir.mkdir()
    run_folder.save_config(cfg)
    return cfg


def test_the_same_run_by_another_name_is_the_same(tmp_path: Path) -> None:
    begun(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert run_folder.holds_run(tmp_path / "b")
    assert run_folder.changes(config(tmp_path / "b")) == {}


def test_allowed_changes_are_reported_and_others_refused_by_name(tmp_path: Path) -> None:
    begun(tmp_path / "a")
    free = config(tmp_path / "a", "steps=90", "run.keep_every=5", "log.progress=false", "optim.lr=3e-5")
    found = run_folder.changes(free)
    assert found == {
        "steps": (45, 90),
        "run.keep_every": (0, 5),
        "log.progress": (True, False),
        "optim.lr": (1e-4, 3e-5),
    }
    assert "steps=90 (was 45)" in run_folder.changes_text(found)
    other = config(
        tmp_path / "a", "rollout.group=4", "steps=90", "data.settings={low=3}", "eval.data={}", "eval.every=3"
    )
    with refused(ErrorCode.RUN_FOLDER_TAKEN, file=tmp_path / "a", key="data.settings") as caught:
        run_folder.changes(other)
    message = str(caught.value)
    assert f"{tmp_path / 'a'} holds another run: " in message
    for part in ("rollout.group=4 (was 8)", "data.settings.low=3 (was null)", "eval.data={} (was null)", "--overwrite"):
        assert part in message
    assert "steps" not in message
    assert "eval.every" not in message


def test_of_another_kind_only_the_kind_is_listed(tmp_path: Path) -> None:
    begun(tmp_path / "a", "reward.kind=function", "reward.function=a:b")
    files = "eval.data={ kind='files', path='x' }"
    with refused(ErrorCode.RUN_FOLDER_TAKEN, key="eval.data.kind") as caught:
        run_folder.changes(config(tmp_path / "a", "reward.kind=math", files))
    assert 'eval.data.path="x" (was null)' in str(caught.value)
    assert 'reward.kind="math" (was "function")' in str(caught.value)
    assert "reward.answer" not in str(caught.value)
    assert "reward.function" not in str(caught.value)


@pytest.mark.parametrize("text", ["{}", "[1]", "{", '{"architectures": ["LlamaForCausalLM"]}'])
def test_other_folders_are_no_runs(tmp_path: Path, text: str) -> None:
    assert not run_folder.holds_run(tmp_path)
    (tmp_path / "config.json").write_text(text)
    assert not run_folder.holds_run(tmp_path)
    with refused(ErrorCode.RUN_FOLDER_TAKEN, file=tmp_path, key="run.dir"):
        run_folder.check_free(config(tmp_path))


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with run_folder.locked(tmp_path / "r"):
        with refused(ErrorCode.RUN_LOCKED, file=tmp_path / "r"), run_folder.locked(tmp_path / "r"):
            pass
        cfg = config(tmp_path / "r")
        run_folder.save_config(cfg)
        with refused(ErrorCode.RUN_LOCKED, file=tmp_path / "r"):
            ulorl.train(cfg)
        run_folder.clear(tmp_path / "r")
        with refused(ErrorCode.RUN_LOCKED), run_folder.locked(tmp_path / "r"):
            pass
    with run_folder.locked(tmp_path / "r"):
        pass


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    run_dir = tmp_path / "r"
    code = (
        "from pathlib import Path; from ulorl.runs import run_folder; "
        f"lock = run_folder.locked(Path({str(run_dir)!r})); lock.__enter__(); print('locked', flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"locked\n"
        with refused(ErrorCode.RUN_LOCKED), run_folder.locked(run_dir):
            pass
        process.kill()
        process.wait()
        with run_folder.locked(run_dir):
            pass
    run_folder.check_free(config(run_dir))


def test_a_file_system_without_locks_stops_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object, **__: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no locks here")

    monkeypatch.setattr(folder_lock.FileLock, "acquire", unsupported)
    with run_folder.locked(tmp_path):
        pass


def test_a_lock_that_cannot_be_taken_is_no_missing_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's lock file that may not be written: the run inside must not be joined."""

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "permission denied", str(tmp_path / run_folder.LOCK))

    monkeypatch.setattr(folder_lock.FileLock, "acquire", denied)
    with refused(ErrorCode.FILE_NOT_WRITABLE, file=tmp_path / run_folder.LOCK), run_folder.locked(tmp_path):
        pass


def test_a_refused_start_removes_its_folder_while_it_holds_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[bool] = []
    remove = folder_lock._remove_empty
    release = folder_lock.FileLock.release
    released: list[bool] = []
    monkeypatch.setattr(folder_lock, "_remove_empty", lambda *found: (held.append(not released), remove(*found)))
    monkeypatch.setattr(folder_lock.FileLock, "release", lambda self: (released.append(True), release(self)))
    with pytest.raises(KeyError), run_folder.locked(tmp_path / "new" / "run"):
        raise KeyError
    assert held == [True]
    assert not (tmp_path / "new").exists()


def test_where_flock_is_missing_no_marker_file_is_left_to_refuse_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def missing(*_: object) -> None:
        raise OSError(errno.ENOSYS, "no flock")

    monkeypatch.setattr(fcntl, "flock", missing)
    for _ in range(2):
        run_folder.locked(tmp_path).__enter__()  # as a process that is killed: it never leaves


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        refused(ErrorCode.FILE_NOT_WRITABLE, file=tmp_path / "file" / "run"),
        run_folder.locked(tmp_path / "file" / "run"),
    ):
        pass


def test_a_kill_while_a_folder_is_emptied_leaves_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the n-th removal, for every n, config.json is there, and no checkpoint is whose logs are gone."""
    rmtree, unlink = shutil.rmtree, Path.unlink
    for stop in range(6):
        run_dir, removals = tmp_path / f"r{stop}", 0
        cfg = begun(run_dir)
        run_folder.finish(run_dir, 45)
        for folder in ("checkpoints/step_000001/model", "samples", "model"):
            (run_dir / folder).mkdir(parents=True)
            (run_dir / folder / "file").write_text("x")
        (run_dir / "metrics.jsonl").write_text('{"step": 1}\n')

        def killed_at(remove: Callable[..., None], stop: int = stop) -> Callable[..., None]:
            def removal(*arguments: object, **options: object) -> None:
                nonlocal removals
                if removals == stop:
                    raise KeyboardInterrupt
                removals += 1
                remove(*arguments, **options)

            return removal

        with monkeypatch.context() as patched:
            patched.setattr(shutil, "rmtree", killed_at(rmtree))
            patched.setattr(Path, "unlink", killed_at(unlink))
            with pytest.raises(KeyboardInterrupt):
                run_folder.clear(run_dir)
        assert run_folder.changes(cfg) == {}
        whole = (run_dir / "checkpoints" / "step_000001").exists()
        assert not whole or (run_dir / "metrics.jsonl").exists()
        assert whole == (stop < 2)  # finished.json first, then what an earlier crash left, then the checkpoints
        run_folder.check_free(cfg)
        run_folder.clear(run_dir)
        assert [path.name for path in run_dir.iterdir()] == ["config.json"]


def test_finished_is_what_was_marked(tmp_path: Path) -> None:
    assert run_folder.finished(tmp_path) is None
    run_folder.finish(tmp_path, 7)
    assert run_folder.finished(tmp_path) == 7
    (tmp_path / "finished.json").write_text(json.dumps({"steps": None}))
    assert run_folder.finished(tmp_path) is None
