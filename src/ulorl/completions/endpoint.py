"""An OpenAI-compatible server as a `Model`: vLLM, SGLang, hosted ones."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import Any

from ulorl.completions.model import Prompt, identity
from ulorl.errors import UserError
from ulorl.sections import ModelSettings

_NEVER = (401, 403, 404)  # no key, no right, no such model: another try says the same


class Endpoint:
    """`settings.concurrency` requests at once. The client tries again after time-outs, cut connections, 408, 409, 429
    and 5xx, with exponential back-off and what Retry-After says; a request that fails after that, or is answered with
    anything but a chat completion, is a failure of that prompt alone.
    """

    def __init__(self, key: str, settings: ModelSettings) -> None:
        """key: of the settings in the configuration, for messages. Raises UserError without the openai package or an
        API key."""
        try:
            import openai
        except ImportError:
            raise UserError(f'{key}.kind=endpoint needs openai: pip install "ulorl[data]"') from None
        secret = os.environ.get(settings.api_key_env)
        if not secret and not settings.base_url:
            raise UserError(f"{key}: the environment variable {settings.api_key_env} (api_key_env) is not set")
        self._key, self._settings = key, settings
        self._client = openai.OpenAI(
            base_url=settings.base_url or None,
            api_key=secret or "none",  # what servers without keys are told
            timeout=settings.timeout,
            max_retries=settings.retries,
        )
        self.identity = identity(settings)

    def complete(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, str | None]]:
        """As `Model.complete`. Raises UserError when the server refuses for good, or fails `max_failures` times in a
        row."""
        failures = 0
        for index, outcome in self._answers(prompts):
            if isinstance(outcome, str):
                failures = 0
                yield index, outcome
                continue
            told = f"{type(outcome).__name__}: {str(outcome)[:300]}"
            if getattr(outcome, "status_code", 0) in _NEVER:
                raise UserError(f"{self._key}: the server refuses: {told}") from outcome
            yield index, None
            failures += 1
            if failures >= self._settings.max_failures:
                raise UserError(
                    f"{self._key}: {failures} requests failed in a row (max_failures), at last with: {told}. "
                    "Every answer so far is in the cache; mend the server and run the same command again"
                ) from outcome

    def _answers(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, str | Exception]]:
        """Outputs, or what the client raised, as they come. The threads are daemons: a pool would keep an interrupted
        process alive until its last request has timed out."""
        waiting, done = iter(range(len(prompts))), SimpleQueue[tuple[int, str | Exception]]()
        lock, stopped = Lock(), Event()

        def work() -> None:
            while not stopped.is_set():
                with lock:
                    index = next(waiting, None)
                if index is None:
                    return
                try:
                    done.put((index, self._ask(prompts[index])))
                except Exception as error:  # the client's own, and whatever a body that is no completion brings about
                    done.put((index, error))

        for _ in range(min(self._settings.concurrency, len(prompts))):
            Thread(target=work, daemon=True).start()
        try:
            for _ in prompts:
                yield done.get()
        finally:
            stopped.set()
            self._client.close()

    def _ask(self, prompt: Prompt) -> str:
        settings = self._settings
        messages: list[Any] = [{"role": "system", "content": settings.system}] if settings.system else []
        completion = self._client.chat.completions.create(
            model=settings.name,
            messages=[*messages, {"role": "user", "content": prompt[0]}],
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=settings.max_tokens,
        )
        choice = completion.choices[0]
        if choice.finish_reason == "length":
            return ""
        content = choice.message.content
        if choice.finish_reason != "stop" or not isinstance(content, str):
            raise ValueError(f"no whole answer (finish_reason {choice.finish_reason!r})")
        return content
