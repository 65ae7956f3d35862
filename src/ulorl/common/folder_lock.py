"""The lock of a folder that one process at a time may write to."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from ulorl.common import atomic_files
from ulorl.errors import UserError

_WITHOUT_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}  # of a file system that has none


@contextmanager
def locked(lock_file: Path, *, busy: UserError, fix: str, wait: float = 0) -> Iterator[None]:
    """Hold the lock of the folder of `lock_file`, which is created if needed. One process has it at a time; it ends
    with the process, however that ends. At the end a folder that it created is removed if nothing was put into it.

    lock_file: empty; the operating system knows who holds it. busy: raised when another process, or another call, has
    the lock. fix: what to do when the folder cannot be created or written, which raises UserError too. wait: seconds
    that the lock is waited for.
    """
    folder = lock_file.parent
    # No fallback to a marker file: after a kill it would stay, and refuse the folder on another host for good.
    lock = FileLock(lock_file, timeout=wait, fallback_to_soft=False)
    with atomic_files.writing(folder, lambda: fix):
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        _acquire(lock, busy)
    try:
        yield
    finally:
        if made:
            _remove_empty(made, lock_file)  # while the lock is held: no other process works in the folder
        lock.release()


def _acquire(lock: BaseFileLock, busy: UserError) -> None:
    try:
        lock.acquire()
    except Timeout:
        raise busy from None
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise


def _remove_empty(folders: list[Path], lock_file: Path) -> None:
    """Remove a folder that holds nothing but its lock, and its parents, innermost first."""
    with suppress(OSError):
        if {path.name for path in folders[0].iterdir()} <= {lock_file.name}:
            lock_file.unlink(missing_ok=True)
            for folder in folders:
                folder.rmdir()
