"""The seam of models that answer prompts, and the memory of what they said: an interrupted run asks what is missing."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Protocol

from ulorl.common.progress import Advance
from ulorl.config.client_config import ClientConfig
from ulorl.errors import UserError

Prompt = tuple[str, int]  # the user's message, and which of several samples of it: another number, another draw

_FILES = {".safetensors", ".bin", ".gguf", ".json", ".jinja", ".model", ".txt"}  # a model folder's that matter
_BLOCK, _BLOCKS = 1 << 16, 1024  # bytes, and how many of each file count: a training run changes all over a file


class Model(Protocol):
    """Whatever answers prompts."""

    identity: str  # everything that an answer depends on beside the prompt

    def complete(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, str | None]]:
        """(index of the prompt, output) as they come, in any order. An output that was cut at the length limit is "",
        since it has no end; None means that the model failed to answer. Raises UserError when it never will."""
        ...


class Cache:
    """Outputs on disk, by model, prompt and sample. Failures are not kept: they are asked again. Threads may share one,
    and processes its file."""

    def __init__(self, path: Path | None) -> None:
        """path: None keeps them in memory. Raises UserError, as every other call, when the file cannot be used."""
        self._path, self._lock = path, Lock()
        with self._using():
            self._database = sqlite3.connect(path or ":memory:", timeout=60, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")  # outlives the process; a power cut may take the last
            self._database.execute("CREATE TABLE IF NOT EXISTS outputs (key TEXT PRIMARY KEY, output TEXT NOT NULL)")

    def get(self, key: str) -> str | None:
        with self._using():
            row = self._database.execute("SELECT output FROM outputs WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def put(self, key: str, output: str) -> None:
        """Kept from here on, whatever happens to the process."""
        whole = output.encode("utf-8", "replace").decode()  # JSON can say half a surrogate pair
        with self._using(), self._database:
            self._database.execute("INSERT OR REPLACE INTO outputs VALUES (?, ?)", (key, whole))

    def close(self) -> None:
        with self._using():
            self._database.close()

    @contextmanager
    def _using(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                raise UserError(
                    f"{self._path}: cannot be used as the cache of model outputs ({error}); remove it, or make room"
                ) from error


class CachedModel:
    """Answers from the cache, and asks the model for the rest. make: builds the model when it is needed at all."""

    def __init__(self, identity: str, make: Callable[[], Model], cache: Cache) -> None:
        self._identity, self._make, self._cache = identity, make, cache
        self.hits = self.asked = self.failed = 0

    def complete(self, prompts: Sequence[Prompt], advance: Advance = lambda _: None) -> list[str | None]:
        """An output for each prompt, as `Model.complete`, in their order. Raises UserError."""
        keys = [key_of(self._identity, prompt) for prompt in prompts]
        outputs = [self._cache.get(key) for key in keys]
        missing = [index for index, output in enumerate(outputs) if output is None]
        self.hits += len(prompts) - len(missing)
        advance(len(prompts) - len(missing))
        if missing:
            for position, output in self._make().complete([prompts[index] for index in missing]):
                index = missing[position]
                outputs[index] = output
                self.asked += 1
                self.failed += output is None
                if output is not None:
                    self._cache.put(keys[index], output)
                advance(1)
        return outputs


def key_of(identity: str, prompt: Prompt) -> str:
    """Where a cache keeps the output of a model for a prompt."""
    return hashlib.sha256(json.dumps([identity, *prompt], ensure_ascii=True).encode()).hexdigest()


def identity(settings: ClientConfig) -> str:
    """What an answer depends on, beside the prompt: of a model folder, also what its files hold. Whatever stands behind
    a server's or a hub's name is taken to stay the same."""
    names = ("kind", "name", "base_url", "system", "temperature", "top_p", "max_tokens", "seed", "retry_temperature")
    values = settings.model_dump(include=set(names))
    if settings.kind == "engine":
        values["engine"] = settings.engine.model_dump(include={"kind", "dtype"})
        values |= {"chat": settings.chat} if settings.chat != "auto" else {}
        folder = Path(os.path.expanduser(settings.name))
        values |= {"files": fingerprint(folder)} if folder.is_dir() else {}
    return json.dumps(values, sort_keys=True)


def fingerprint(folder: Path) -> str:
    """Of the files of a model folder: names, sizes, and at most 1024 blocks of each, evenly spread, so that gigabytes
    take no time and a model that was trained on has another."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in _FILES and path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            for start in range(0, size, max(_BLOCK, -(-size // _BLOCKS))):
                file.seek(start)
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()[:32]


def make_model(key: str, settings: ClientConfig) -> Model:
    """key: of the settings in the configuration, for messages. Raises UserError for what cannot be used."""
    if settings.kind == "endpoint":
        from ulorl.clients.server_client import Endpoint

        return Endpoint(key, settings)
    from ulorl.clients.engine_client import EngineModel

    return EngineModel(key, settings)
