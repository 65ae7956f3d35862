"""What a crash leaves, and what a full disk says."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from refusals import refused
from ulorl.common import atomic_files
from ulorl.error_codes import ErrorCode


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is flushed and what is renamed, in order."""
    made: list[tuple[str, str]] = []
    sync, rename, replace = atomic_files.sync, Path.rename, Path.replace
    monkeypatch.setattr(atomic_files, "sync", lambda path: (made.append(("sync", path.name)), sync(path)))
    monkeypatch.setattr(Path, "rename", lambda self, to: (made.append(("rename", self.name)), rename(self, to))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (made.append(("rename", self.name)), replace(self, to))[1])
    return made


def test_a_file_is_flushed_before_and_its_name_after_the_rename(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    target = tmp_path / "config.json"
    target.write_text("old")
    atomic_files.write_text(target, "new ü")
    assert target.read_text(encoding="utf-8") == "new ü"
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert calls == [("sync", "config.json.partial"), ("rename", "config.json.partial"), ("sync", tmp_path.name)]


def test_a_folder_is_flushed_whole_before_it_gets_its_name(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    (tmp_path / "a.partial" / "model").mkdir(parents=True)
    for name in ("state.json", "model/weights"):
        (tmp_path / "a.partial" / name).write_text(name)
    atomic_files.publish(tmp_path / "a.partial", tmp_path / "a")
    assert sorted(calls[:4]) == [("sync", "a.partial"), ("sync", "model"), ("sync", "state.json"), ("sync", "weights")]
    assert calls.index(("sync", "weights")) < calls.index(("sync", "model")) < calls.index(("sync", "a.partial"))
    assert calls[4:] == [("rename", "a.partial"), ("sync", tmp_path.name)]


def test_what_is_being_removed_has_lost_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("x")

    def stopped(_: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(atomic_files.shutil, "rmtree", stopped)
        with pytest.raises(KeyboardInterrupt):
            atomic_files.remove(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a.removed"]
    atomic_files.remove(tmp_path / "a")  # again: what was left is removed too
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "x", "/there/state.json"), "/there/state.json: cannot be written: No space left on"),
        (PermissionError(errno.EACCES, "x"), "/here: cannot be written: Permission denied. Do this"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "/here: cannot be written: No space"),
        (Exception("Disk quota exceeded (os error 122)"), "/here: cannot be written: Disk quota exceeded"),
    ],
)
def test_an_error_of_the_disk_becomes_a_message(error: Exception, message: str) -> None:
    place = message.partition(":")[0]
    with (
        refused(ErrorCode.FILE_NOT_WRITABLE, file=place) as caught,
        atomic_files.writing(Path("/here"), lambda: "Do this"),
    ):
        raise error
    assert str(caught.value).startswith(message)
    assert str(caught.value).endswith("Do this")


@pytest.mark.parametrize("error", [ConnectionRefusedError(errno.ECONNREFUSED, "x"), ValueError("x"), OSError("x")])
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)), atomic_files.writing(Path("/here"), lambda: "Do this"):
        raise error


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here, which is a disk that is full")
def test_a_disk_that_is_full() -> None:
    with (
        refused(ErrorCode.FILE_NOT_WRITABLE, file="/dev/full"),
        atomic_files.writing(Path("/dev/full"), lambda: ""),
        open("/dev/full", "w") as file,
    ):
        file.write("x")
