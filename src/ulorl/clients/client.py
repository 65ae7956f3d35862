"""The interface of models that answer prompts, and the identity by which their outputs are cached."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from ulorl.cancellation import NEVER, CancelToken
from ulorl.clients.output_cache import OutputCache, output_key
from ulorl.common.progress import Advance
from ulorl.config.client_config import ClientConfig

Prompt = tuple[str, int]  # the user's message, and which of several samples of it: another number, another draw

_SUFFIXES = {".safetensors", ".bin", ".gguf", ".json", ".jinja", ".model", ".txt"}  # of files that make up a model
_BLOCK, _BLOCKS = 1 << 16, 1024  # bytes, and how many of each file count: a training run changes all over a file


class ModelClient(Protocol):
    """A model that answers prompts."""

    identity: str  # everything that an output depends on besides the prompt

    def complete(self, prompts: Sequence[Prompt], cancel: CancelToken = NEVER) -> Iterator[tuple[int, str | None]]:
        """Yield (index of the prompt, output) as outputs come, in any order.

        An output that was cut at the length limit is "", since it has no end; None means that the model failed to
        answer. Raises UserError when it never will, and Cancelled.
        """
        ...


class CachedClient:
    """Answers from the cache, and asks the model for the rest. make: builds the model at the first miss."""

    def __init__(self, identity: str, make: Callable[[], ModelClient], cache: OutputCache) -> None:
        self._identity, self._make, self._cache = identity, make, cache
        self.hits = self.asked = self.failed = 0

    def complete(self, prompts: Sequence[Prompt], advance: Advance = lambda _: None) -> list[str | None]:
        """Return an output for each prompt, as `ModelClient.complete`, in the prompts' order. Raises UserError."""
        keys = [output_key(self._identity, *prompt) for prompt in prompts]
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


def model_identity(settings: ClientConfig) -> str:
    """Return what an output depends on besides the prompt, as JSON: of a model folder, also what its files hold.

    The model that a server or a hub calls by a name is assumed to stay the same.
    """
    names = ("kind", "name", "base_url", "system", "temperature", "top_p", "max_tokens", "seed", "retry_temperature")
    values = {"base_url": "", "seed": 0, **settings.model_dump(include=set(names))}
    if settings.kind == "engine":
        values["engine"] = settings.engine.model_dump(include={"kind", "dtype"})
        values |= {"chat": settings.chat} if settings.chat != "auto" else {}
        folder = Path(os.path.expanduser(settings.name))
        values |= {"files": folder_fingerprint(folder)} if folder.is_dir() else {}
    return json.dumps(values, sort_keys=True)


def folder_fingerprint(folder: Path) -> str:
    """Return a digest of a model folder's files: names, sizes, and at most 1024 blocks of each, evenly spread.

    So gigabytes take no time, and a model that was trained further has another digest.
    """
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES and path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            for start in range(0, size, max(_BLOCK, -(-size // _BLOCKS))):
                file.seek(start)
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()[:32]
