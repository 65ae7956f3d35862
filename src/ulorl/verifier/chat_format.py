"""Requests, answers and errors of OpenAI's chat completions, as `ulorl verifier serve` reads and writes them.

What the server cannot do is refused, never ignored: a caller that asks for it would take the answer for something else.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ulorl.errors import bad_character

# Parameters that the server takes only with the value that changes nothing.
_NEUTRAL: Mapping[str, Any] = {
    "n": 1,
    "stream": False,
    "logprobs": False,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logit_bias": {},
    "tools": [],
    "tool_choice": "none",
    "response_format": {"type": "text"},
    "store": False,
}
_NO_EFFECT = ("user", "metadata")  # which say who asks


class ApiError(Exception):
    """An error that a request is answered with."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        """status: of HTTP. param: the parameter that is wrong. code: OpenAI's name of the error, where it has one."""
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        """Return the error in OpenAI's format."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class _TextPart(_Strict):
    type: Literal["text"]
    text: str


class ChatMessage(_Strict):
    """A message of a conversation. Of the kinds of content, only text is supported."""

    role: Literal["system", "user", "assistant"]
    content: str | list[_TextPart]

    def as_text(self) -> dict[str, str]:
        """Return the message as chat templates take it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": text}


class ChatRequest(_Strict):
    """A request for one completion. `max_completion_tokens` is another name of `max_tokens`."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    temperature: float = Field(default=0.0, ge=0, le=2)  # greedy, other than OpenAI's 1
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int | None = Field(default=None, gt=0)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
        Field(max_length=4),
    ] = []


def parse_request(body: bytes) -> ChatRequest:
    """Return the request in a body. Raises ApiError naming the parameter that is wrong or not supported."""
    try:
        table = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(f"the body is not JSON in UTF-8: {error}") from None
    if not isinstance(table, dict):
        raise ApiError("the body is not a JSON object")
    given = {name: value for name, value in table.items() if value is not None and name not in _NO_EFFECT}
    for name, neutral in _NEUTRAL.items():
        if name in given and (value := given.pop(name)) != neutral:
            raise ApiError(
                f"{name}={json.dumps(value)[:80]} is not supported; leave it out, or send {json.dumps(neutral)}",
                param=name,
                code="unsupported_parameter",
            )
    tokens = given.pop("max_completion_tokens", None)
    if tokens is not None and given.setdefault("max_tokens", tokens) != tokens:
        raise ApiError("max_tokens and max_completion_tokens differ; give one of them", param="max_tokens")
    try:
        request = ChatRequest.model_validate(given)
    except ValidationError as error:
        raise _refusal(error) from None
    for number, message in enumerate(request.messages):
        if wrong := bad_character(message.as_text()["content"]):
            raise ApiError(f"the text of messages.{number} {wrong}", param=f"messages.{number}.content")
    return request


def _refusal(error: ValidationError) -> ApiError:
    """Return the first thing that is wrong. The input is left out: it may be long."""
    first = error.errors(include_url=False, include_context=False)[0]
    param = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return ApiError(f"{param}: this server does not know or support it", param=param, code="unsupported_parameter")
    return ApiError(f"{param}: {first['msg']}", param=param)


def completion(
    model: str, number: int, text: str, *, cut: bool, prompt_tokens: int, completion_tokens: int
) -> dict[str, Any]:
    """Return a completion in OpenAI's format. number: of the request. cut: whether it reached its longest length."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "logprobs": None,
        "finish_reason": "length" if cut else "stop",
    }
    return {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [choice],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }


def models(names: Mapping[str, int]) -> dict[str, Any]:
    """Return a list of models in OpenAI's format. names: with the time when each was loaded, in seconds."""
    data = [{"id": name, "object": "model", "created": at, "owned_by": "ulorl"} for name, at in names.items()]
    return {"object": "list", "data": data}
