"""The seam of models that answer prompts, and the memory of what they said: an interrupted run asks what is missing."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from ulorl.errors import UserError
from ulorl.sections import ModelSettings

Prompt = tuple[str, int]  # the user's message, and which of several samples of it: another number, another draw
Watch = Callable[[int], None]  # told of so many answers that came in


class Model(Protocol):
    """Whatever answers prompts."""

    identity: str  # everything that an answer depends on beside the prompt

    def complete(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, str | None]]:
        """(index of the prompt, output) as they come, in any order. An output that was cut at the length limit is "",
        since it has no end; None means that the model failed to answer. Raises UserError when it never will."""
        ...


class Cache:
    """Outputs on disk, by model, prompt and sample. Failures are not kept: they are asked again."""

    def __init__(self, path: Path) -> None:
        try:
            self._database = sqlite3.connect(path)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("CREATE TABLE IF NOT EXISTS outputs (key TEXT PRIMARY KEY, output TEXT NOT NULL)")
        except sqlite3.Error as error:
            raise UserError(f"{path}: cannot be used as the cache of model outputs ({error}); remove it") from error

    def get(self, key: str) -> str | None:
        row = self._database.execute("SELECT output FROM outputs WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def put(self, key: str, output: str) -> None:
        """Kept from here on, whatever happens to the process."""
        with self._database:
            self._database.execute("INSERT OR REPLACE INTO outputs VALUES (?, ?)", (key, output))

    def close(self) -> None:
        self._database.close()


class CachedModel:
    """Answers from the cache, and asks the model for the rest. make: builds the model when it is needed at all."""

    def __init__(self, identity: str, make: Callable[[], Model], cache: Cache) -> None:
        self._identity, self._make, self._cache = identity, make, cache
        self.hits = self.asked = self.failed = 0

    def complete(self, prompts: Sequence[Prompt], watch: Watch = lambda _: None) -> list[str | None]:
        """An output for each prompt, as `Model.complete`, in their order. Raises UserError."""
        keys = [_key(self._identity, prompt) for prompt in prompts]
        outputs = [self._cache.get(key) for key in keys]
        missing = [index for index, output in enumerate(outputs) if output is None]
        self.hits += len(prompts) - len(missing)
        watch(len(prompts) - len(missing))
        if missing:
            for position, output in self._make().complete([prompts[index] for index in missing]):
                index = missing[position]
                outputs[index] = output
                self.asked += 1
                self.failed += output is None
                if output is not None:
                    self._cache.put(keys[index], output)
                watch(1)
        return outputs


def _key(identity: str, prompt: Prompt) -> str:
    return hashlib.sha256(json.dumps([identity, *prompt], ensure_ascii=True).encode()).hexdigest()


def identity(settings: ModelSettings) -> str:
    """What an answer depends on, beside the prompt."""
    names = ("kind", "name", "base_url", "system", "temperature", "top_p", "max_tokens", "seed")
    values = settings.model_dump(include=set(names))
    if settings.kind == "engine":
        values["engine"] = settings.engine.model_dump(include={"kind", "dtype"})
    return json.dumps(values, sort_keys=True)


def make_model(key: str, settings: ModelSettings) -> Model:
    """key: of the settings in the configuration, for messages. Raises UserError for what cannot be used."""
    if settings.kind == "endpoint":
        from ulorl.completions.endpoint import Endpoint

        return Endpoint(key, settings)
    from ulorl.completions.inprocess import EngineModel

    return EngineModel(key, settings)
