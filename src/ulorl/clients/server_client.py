"""The client of an OpenAI-compatible server: vLLM, SGLang or a hosted one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from importlib import import_module
from queue import Empty, SimpleQueue
from threading import Lock
from typing import Any

from ulorl.cancellation import NEVER, CancelToken
from ulorl.clients.client import Prompt, model_identity
from ulorl.clients.daemon_pool import DaemonPool
from ulorl.config.client_config import EndpointClientConfig
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError

CHECK_SECONDS = 0.2  # between two looks at the cancel token
_NEVER = (401, 403, 404)  # no key, no permission, no such model: another attempt gets the same answer


class ServerClient:
    """Sends at most `settings.concurrency` requests at once.

    A request is repeated after a time-out, a cut connection, 408, 409, 429 and 5xx, with exponential back-off or after
    the time that Retry-After gives. One that still fails, or whose answer is no chat completion, is a failure of its
    prompt alone.
    """

    def __init__(self, key: str, settings: EndpointClientConfig, *, retry_temperature: float | None = None) -> None:
        """key: of the settings in the configuration, for messages. retry_temperature: of all samples of a prompt but
        the first; None: as of the first. Raises UserError without the openai package or an API key."""
        try:
            import openai
        except ImportError:
            raise UserError(
                f'{key}.kind=endpoint needs openai: pip install "ulorl[data]"',
                code=ErrorCode.EXTRA_MISSING,
                key=f"{key}.kind",
            ) from None
        secret = os.environ.get(settings.api_key_env)
        if not secret and not settings.base_url:
            raise UserError(
                f"{key}: the environment variable {settings.api_key_env} (api_key_env) is not set",
                code=ErrorCode.API_KEY_MISSING,
                key=f"{key}.api_key_env",
            )
        self._key, self._settings, self._secret = key, settings, secret
        self._retry_temperature = settings.temperature if retry_temperature is None else retry_temperature
        self._client = openai.OpenAI(
            base_url=settings.base_url or None,
            api_key=secret or "none",  # the client requires one; servers without keys ignore it
            timeout=settings.timeout,
            max_retries=settings.retries,
            http_client=openai.DefaultHttpxClient(event_hooks={"response": [partial(_bound, settings.timeout)]}),
        )
        self._lock, self._failures = Lock(), 0  # in a row
        self._stopped: UserError | None = None
        self.identity = model_identity(settings)

    def complete(self, prompts: Sequence[Prompt], cancel: CancelToken = NEVER) -> Iterator[tuple[int, str | None]]:
        """Yield outputs as `ModelClient.complete`.

        Raises UserError when the server refuses for good, or fails `max_failures` times in a row; and Cancelled. Then
        the requests that have not started are dropped.
        """
        done, pool = SimpleQueue[tuple[int, str | Exception]](), DaemonPool(self._settings.concurrency)
        for index, prompt in enumerate(prompts):
            pool.submit(partial(self._put, done, index, prompt))
        waiting = len(prompts)
        try:
            while waiting:
                cancel.check()
                try:
                    index, outcome = done.get(timeout=CHECK_SECONDS)
                except Empty:
                    continue
                waiting -= 1
                yield index, outcome if isinstance(outcome, str) else None
                if isinstance(outcome, UserError):
                    raise outcome
        finally:
            pool.drop()

    def ask(self, prompt: Prompt) -> str:
        """Return one output, from any thread; "" when it was cut at the length limit.

        Raises UserError as `complete`, and ConnectionError, whose text holds no API key, when this prompt failed.
        """
        if self._stopped:
            raise self._stopped
        try:
            output = self._ask(prompt)
        except Exception as error:  # the client's, or caused by a body that is no completion
            raise self._failed(error) from error
        self._failures = 0
        return output

    def _failed(self, error: Exception) -> Exception:
        """Count the failure, and return the exception to raise."""
        text = f"{type(error).__name__}: {error}"
        text = (text.replace(self._secret, "***") if self._secret else text)[:300]
        with self._lock:
            self._failures += 1
            if getattr(error, "status_code", 0) in _NEVER:
                self._stopped = self._error(f"the server refuses: {text}")
            elif self._failures >= self._settings.max_failures:
                self._stopped = self._error(
                    f"{self._failures} requests failed in a row (max_failures), at last with: {text}. Every answer so "
                    "far is in the cache; fix the server and run the same command again"
                )
            return self._stopped or ConnectionError(text)

    def _error(self, message: str) -> UserError:
        return UserError(f"{self._key}: {message}", code=ErrorCode.SERVER_FAILED, key=self._key)

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
            temperature=self._retry_temperature if prompt[1] else settings.temperature,
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
    """Bound the time of a response's whole body. The client's own limit is for each read: a server that sends a byte
    now and then would never reach it."""
    end, raw = time.monotonic() + seconds, response.iter_raw
    library: Any = import_module(type(response).__module__.partition(".")[0])  # httpx, or httpx2 of later clients

    def bounded(*arguments: Any, **named: Any) -> Iterator[bytes]:
        for chunk in raw(*arguments, **named):
            if time.monotonic() > end:
                raise library.ReadTimeout(f"no whole answer within {seconds:g} seconds", request=response.request)
            yield chunk

    response.iter_raw = bounded
