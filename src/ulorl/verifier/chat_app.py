"""The web application of `ulorl verifier serve`: a model of our engine under OpenAI's paths."""

from __future__ import annotations

import asyncio
import hmac
import re
import sys
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any, Literal

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from transformers import PreTrainedTokenizerBase

from ulorl.clients.shared_engine import SharedEngine
from ulorl.data.prompts import encode_messages
from ulorl.errors import UserError
from ulorl.rng import Stream, sample_seed
from ulorl.types import Finish, Sampling, Tokens
from ulorl.verifier.chat_format import ApiError, ChatRequest, completion, models, parse_request
from ulorl.verifier.serving_config import is_loopback

MAX_BODY = 8 * 2**20  # bytes of a request


class ChatModel:
    """Answers requests for chat completions with one model."""

    def __init__(
        self,
        name: str,
        engine: SharedEngine,
        tokenizer: PreTrainedTokenizerBase,
        *,
        context: int = sys.maxsize,
        max_tokens: int = 2048,
        max_requests: int = 1024,
        chat: Literal["auto", "off"] = "auto",
        seed: int = 0,
    ) -> None:
        """name: by which requests call the model. context: tokens of a prompt with its output. max_tokens: of outputs
        to requests that name no limit, as far as the context allows. max_requests: at the same time; more are refused.
        seed: with the number of the request, of the draws for a request that has none."""
        self.name, self._engine, self._tokenizer = name, engine, tokenizer
        self._context, self._max_tokens, self._chat, self._seed = context, max_tokens, chat, seed
        self._numbers, self._max_requests, self._present = count(1), max_requests, 0
        # One thread, because a tokenizer cannot be relied on in several, and not the event loop's: long texts take
        # seconds, in which /health would not answer.
        self._encoder = ThreadPoolExecutor(1, "tokenizer")
        self.loaded, self.answered = int(time.time()), 0

    @property
    def error(self) -> BaseException | None:
        """Why the model answers no more requests, None while it does."""
        return self._engine.error

    async def complete(self, request: ChatRequest) -> dict[str, Any]:
        """Return the completion that a request asks for. Raises ApiError."""
        if self._present >= self._max_requests:
            message = f"the server has {self._present} requests already (max_requests); try again later"
            raise ApiError(message, status=503)
        self._present += 1
        try:
            return await self._completed(request)
        finally:
            self._present -= 1

    async def _completed(self, request: ChatRequest) -> dict[str, Any]:
        if request.model != self.name:
            message = f"there is no model {request.model!r}; this server has {self.name!r}"
            raise ApiError(message, status=404, param="model", code="model_not_found")
        number = next(self._numbers)
        prompt = await asyncio.get_running_loop().run_in_executor(self._encoder, self._encoded, request)
        run_seed, sample = (self._seed, number) if request.seed is None else (request.seed, 0)
        sampling = Sampling(request.temperature, request.top_p)
        seed = sample_seed(run_seed, sample, Stream.COMPLETIONS)
        decoded = self._engine.submit(prompt, self._budget(request, prompt), sampling, seed)
        try:
            segment = await asyncio.wrap_future(decoded)
        except UserError as error:
            raise ApiError(f"the engine failed: {error}", status=500) from error
        text = str(self._tokenizer.decode(segment.tokens.tolist(), skip_special_tokens=True))
        ends = [at for stop in request.stop if (at := text.find(stop)) >= 0]
        self.answered += 1
        return completion(
            self.name,
            number,
            text[: min(ends)] if ends else text,
            cut=segment.finish is Finish.LENGTH and not ends,
            prompt_tokens=len(prompt),
            completion_tokens=len(segment),
        )

    def _encoded(self, request: ChatRequest) -> Tokens:
        try:
            return encode_messages([m.as_text() for m in request.messages], self._tokenizer, chat=self._chat)
        except UserError as error:
            raise ApiError(str(error), param="messages") from error

    def _budget(self, request: ChatRequest, prompt: Tokens) -> int:
        """Return the longest output, in tokens. Raises ApiError for what does not fit into the context."""
        free = self._context - len(prompt)
        wanted = request.max_tokens if request.max_tokens is not None else min(self._max_tokens, max(free, 1))
        if wanted > free:
            raise ApiError(
                f"the prompt has {len(prompt)} tokens and the output may have {wanted}, but the model's context has "
                f"{self._context}; shorten the prompt or lower max_tokens",
                param="messages",
                code="context_length_exceeded",
            )
        return wanted


def make_app(model: ChatModel, key: str = "") -> Starlette:
    """Return the application of a model: /v1/chat/completions, /v1/models and /health.

    key: that requests to the first two must carry; "": none, and their Host must then be this machine's own, so that a
    web page cannot use the model through its reader's browser by giving its name this address (DNS rebinding).
    """

    async def chat(request: Request) -> Response:
        _check_caller(request, key)
        _check_type(request)
        return JSONResponse(await _unless_gone(request, model.complete(parse_request(await _body(request)))))

    async def listed(request: Request) -> Response:
        _check_caller(request, key)
        return JSONResponse(models({model.name: model.loaded}))

    async def health(_: Request) -> Response:
        if model.error:
            raise ApiError(f"the engine failed: {model.error}", status=503)
        return JSONResponse({"status": "ok"})

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", listed),
            Route("/health", health),
        ],
        exception_handlers={ApiError: _refused, HTTPException: _no_route, Exception: _failed},
    )


def _check_caller(request: Request, key: str) -> None:
    """Refuse a request without the key, in a time that says nothing about it; with no key, one under a foreign Host."""
    if not key:
        host = request.headers.get("host", "")
        if not is_loopback(re.sub(r":\d*$", "", host).lower().strip("[]")):
            raise ApiError(
                f"the request is for the host {host!r}, but without a key this server answers only as localhost, "
                "127.0.0.1 or [::1]; use such a base URL, or start the server with --api-key-env",
                status=421,
            )
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if not (scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), key.encode())):
        message = "the API key is missing or wrong; send it as Authorization: Bearer KEY"
        raise ApiError(message, status=401, code="invalid_api_key")


def _check_type(request: Request) -> None:
    """Refuse a body that is not declared as JSON: browsers send any other text to any address for a page that asks."""
    given = request.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != "application/json":
        raise ApiError(f"the body is {given or 'of no type'}; send it as Content-Type: application/json", status=415)


async def _unless_gone(request: Request, answer: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """Return an answer, or cancel it when the caller closes the connection. Raises ApiError."""
    answered, gone = asyncio.ensure_future(answer), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((answered, gone), return_when=asyncio.FIRST_COMPLETED)
        if not answered.done():
            raise ApiError("the caller closed the connection", status=499)
        return answered.result()
    except asyncio.CancelledError:  # by the server, when requests take longer than it waits
        raise ApiError("the server stops", status=503) from None
    finally:
        answered.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    """Wait until the caller closes the connection, after the body was read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise ApiError(f"the body has more than {MAX_BODY} bytes", status=413)
    return bytes(body)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}; this server has POST /v1/chat/completions, "
    wrong = ApiError(f"{message}GET /v1/models and GET /health", status=error.status_code)
    return JSONResponse(wrong.body(), wrong.status, error.headers)


async def _failed(_: Request, error: Exception) -> Response:
    """Answer what nobody expected; the traceback goes to the server's log."""
    return JSONResponse(ApiError(f"the server failed ({type(error).__name__})", status=500).body(), 500)
