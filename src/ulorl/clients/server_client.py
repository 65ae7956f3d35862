"""An OpenAI-compatible server as a `Model`: vLLM, SGLang, hosted ones."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from importlib import import_module
from queue import SimpleQueue
from threading import Lock
from typing import Any

from ulorl.clients.client import Prompt, identity
from ulorl.clients.daemon_pool import Background
from ulorl.config.client_config import ClientConfig
from ulorl.errors import UserError

_NEVER = (401, 403, 404)  # no key, no right, no such model: another try says the same


class Endpoint:
    """`settings.concurrency` requests at once. The client tries again after time-outs, cut connections, 408, 409, 429
    and 5xx, with exponential back-off and what Retry-After says; a request that fails after that, or is answered with
    anything but a chat completion, is a failure of that prompt alone.
    """

    def __init__(self, key: str, settings: ClientConfig) -> None:
        """key: of the settings in the configuration, for messages. Raises UserError without the openai package or an
        API key."""
        try:
            import openai
        except ImportError:
            raise UserError(f'{key}.kind=endpoint needs openai: pip install "ulorl[data]"') from None
        secret = os.environ.get(settings.api_key_env)
        if not secret and not settings.base_url:
            raise UserError(f"{key}: the environment variable {settings.api_key_env} (api_key_env) is not set")
        self._key, self._settings, self._secret = key, settings, secret
        self._client = openai.OpenAI(
            base_url=settings.base_url or None,
            api_key=secret or "none",  # what servers without keys are told
            timeout=settings.timeout,
            max_retries=settings.retries,
            http_client=openai.DefaultHttpxClient(event_hooks={"response": [partial(_bound, settings.timeout)]}),
        )
        self._lock, self._failures = Lock(), 0  # in a row
        self._stopped: UserError | None = None
        self.identity = identity(settings)

    def complete(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, str | None]]:
        """As `Model.complete`. Raises UserError when the server refuses for good, or fails `max_failures` times in a
        row."""
        done, background = SimpleQueue[tuple[int, str | Exception]](), Background(self._settings.concurrency)
        for index, prompt in enumerate(prompts):
            background.start(partial(self._put, done, index, prompt))
        try:
            for _ in prompts:
                index, outcome = done.get()
                yield index, outcome if isinstance(outcome, str) else None
                if isinstance(outcome, UserError):
                    raise outcome
        finally:
            background.drop()

    def ask(self, prompt: Prompt) -> str:
        """One output, from any thread; "" when it was cut at the length limit. Raises UserError as `complete`, and
        whatever other exception tells that this prompt failed: its text is fit to be shown."""
        if self._stopped:
            raise self._stopped
        try:
            output = self._ask(prompt)
        except Exception as error:  # the client's own, and whatever a body that is no completion brings about
            raise self._failed(error) from error
        self._failures = 0
        return output

    def _failed(self, error: Exception) -> Exception:
        """What to raise."""
        told = f"{type(error).__name__}: {error}"
        told = (told.replace(self._secret, "***") if self._secret else told)[:300]
        with self._lock:
            self._failures += 1
            if getattr(error, "status_code", 0) in _NEVER:
                self._stopped = UserError(f"{self._key}: the server refuses: {told}")
            elif self._failures >= self._settings.max_failures:
                self._stopped = UserError(
                    f"{self._key}: {self._failures} requests failed in a row (max_failures), at last with: {told}. "
                    "Every answer so far is in the cache; mend the server and run the same command again"
                )
            return self._stopped or ConnectionError(told)

    def _put(self, done: SimpleQueue[tuple[int, str | Exception]], index: int, prompt: Prompt) -> None:
        try:
            done.put((index, self.ask(prompt)))
        except Exception as error:
            done.put((index, error))

    def _ask(self, prompt: Prompt) -> str:
        settings = self._settings
        messages: list[Any] = [{"role": "system", "content": settings.system}] if settings.system else []
        completion = self._client.chat.completions.create(
            model=settings.name,
            messages=[*messages, {"role": "user", "content": prompt[0]}],
            temperature=settings.temperature_of(prompt[1]),
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


def _bound(seconds: float, response: Any) -> None:
    """The client's own limit is one for each read: a server that drips would never reach it. This one is for the whole
    body."""
    end, raw = time.monotonic() + seconds, response.iter_raw
    library: Any = import_module(type(response).__module__.partition(".")[0])  # httpx, or httpx2 of later clients

    def bounded(*arguments: Any, **named: Any) -> Iterator[bytes]:
        for chunk in raw(*arguments, **named):
            if time.monotonic() > end:
                raise library.ReadTimeout(f"no whole answer within {seconds:g} seconds", request=response.request)
            yield chunk

    response.iter_raw = bounded
