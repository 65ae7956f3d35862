"""Models' outputs kept in an SQLite file, so that an interrupted command asks only for what is missing."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError


class OutputCache:
    """Outputs by `output_key`. Failures are not kept. Several threads may share an object, several processes its file.

    Every method raises UserError when the file cannot be used.
    """

    def __init__(self, path: Path | None) -> None:
        """path: the file; None keeps the outputs in memory."""
        self._path, self._lock = path, Lock()
        with self._using():
            self._database = sqlite3.connect(path or ":memory:", timeout=60, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")  # outlives the process; a power cut may take the last
            self._database.execute("CREATE TABLE IF NOT EXISTS outputs (key TEXT PRIMARY KEY, output TEXT NOT NULL)")

    def get(self, key: str) -> str | None:
        """Return the output of a key, None when there is none."""
        with self._using():
            row = self._database.execute("SELECT output FROM outputs WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def put(self, key: str, output: str) -> None:
        """Keep an output. It is on disk when this returns, even if the process is killed later."""
        whole = output.encode("utf-8", "replace").decode()  # JSON can say half a surrogate pair
        with self._using(), self._database:
            self._database.execute("INSERT OR REPLACE INTO outputs VALUES (?, ?)", (key, whole))

    def close(self) -> None:
        """Close the file."""
        with self._using():
            self._database.close()

    @contextmanager
    def _using(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                raise UserError(
                    f"{self._path}: cannot be used as the cache of model outputs ({error}); remove it, or free space",
                    code=ErrorCode.CACHE_UNUSABLE,
                    file=self._path or "",
                ) from error


def output_key(identity: str, message: str, sample: int) -> str:
    """Return the key of a model's output for one sample of a message. identity: `ModelClient.identity`."""
    return hashlib.sha256(json.dumps([identity, message, sample], ensure_ascii=True).encode()).hexdigest()
