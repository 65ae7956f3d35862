"""A model client whose outputs are those of a function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ulorl.cancellation import NEVER, CancelToken
from ulorl.clients.client import CachedClient, ModelClient, Prompt
from ulorl.clients.output_cache import OutputCache

Answer = Callable[[str, int], str | None]


class ScriptedClient:
    """Answers with a function of message and sample, and counts the prompts. The last prompt is answered first, because
    the order must not matter."""

    identity = "scripted"

    def __init__(self, answer: Answer, stop_after: int = 10**9) -> None:
        self.answer, self.stop_after, self.asked = answer, stop_after, 0

    def complete(self, prompts: Sequence[Prompt], cancel: CancelToken = NEVER) -> Iterator[tuple[int, str | None]]:
        """Yield outputs; raise KeyboardInterrupt after `stop_after` prompts."""
        for index, (message, sample) in reversed(list(enumerate(prompts))):
            cancel.check()
            if self.asked == self.stop_after:
                raise KeyboardInterrupt
            self.asked += 1
            yield index, self.answer(message, sample)


def cached(model: ModelClient, folder: Path) -> CachedClient:
    """Return a client whose cache is in `folder`."""
    return CachedClient(model.identity, lambda: model, OutputCache(folder / "cache.sqlite"))
