"""Atomic writes: a file or folder is written under another name, flushed to the disk and renamed, and the rename is
flushed too. After a crash there is the new version or the one before."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError

PARTIAL, REMOVED = ".partial", ".removed"  # suffixes of what is being written and removed

_DISK = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT,
    errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG,
}  # fmt: skip
_RUST = re.compile(r"\(os error (\d+)\)")  # in the messages of safetensors and tokenizers


@contextmanager
def replacing(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """Yield the path of a partial file, which replaces the file `path` when the block ends without an error: whenever
    the process or the machine stops, `path` is the whole new file or the one before.

    flush: write through to the disk; without it this holds for the process only, until somebody calls `sync`.
    """
    partial = path.with_name(path.name + PARTIAL)
    yield partial
    if flush:
        sync(partial)
    partial.replace(path)
    if flush:
        sync(path.parent)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield a new empty folder, which replaces `folder` when the block ends without an error. Between the removal of
    the old folder and the renaming of the new one there is none of this name."""
    partial = folder.with_name(folder.name + PARTIAL)
    remove(partial)
    partial.mkdir(parents=True)
    yield partial
    remove(folder)
    publish(partial, folder)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 atomically, as `replacing` does."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def publish(partial: Path, final: Path) -> None:
    """Flush a complete folder to the disk and rename it to `final`, which must not exist."""
    sync_tree(partial)
    partial.rename(final)
    sync(final.parent)


def remove(folder: Path) -> None:
    """Remove a folder if it exists. It is renamed first, so that no folder of its name lacks some of its files."""
    removed = folder.with_name(folder.name + REMOVED)
    shutil.rmtree(removed, ignore_errors=True)
    if folder.exists():
        folder.rename(removed)
        shutil.rmtree(removed)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk (not the files in the folder)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush a folder with everything in it to the disk."""
    for path in sorted(folder.rglob("*"), reverse=True):  # files before the folders that name them
        sync(path)
    sync(folder)


@contextmanager
def writing(path: Path, fix: Callable[[], str]) -> Iterator[None]:
    """Turn errors of the disk (full, read-only, no permission) into a UserError that names the file, or `path` when the
    error names none. Other errors pass.

    fix: returns the sentence that says what to do; called only after an error.
    """
    try:
        yield
    except Exception as error:
        found = _disk_error(error)
        if found is None:
            raise
        name = getattr(error, "filename", None) or path
        raise UserError(
            f"{name}: cannot be written: {os.strerror(found)}. {fix()}", code=ErrorCode.FILE_NOT_WRITABLE, file=name
        ) from error


def _disk_error(error: Exception) -> int | None:
    """Return the errno of an error of the disk, None for other errors."""
    code = error.errno if isinstance(error, OSError) else None
    if code is None and (found := _RUST.search(str(error))):
        code = int(found[1])
    return code if code in _DISK else None
