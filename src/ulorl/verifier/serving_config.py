"""The settings of `ulorl verifier serve`, and who may reach the server. Importing this module imports no torch."""

from __future__ import annotations

import ipaddress
import os
from typing import Literal

from pydantic import Field

from ulorl.config.engine_config import EngineConfig, TorchEngineConfig
from ulorl.config.fields import Natural, Positive, StrictConfig
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError


class ServingConfig(StrictConfig):
    """How `ulorl verifier serve` decodes."""

    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")
    engine: EngineConfig = TorchEngineConfig()
    chat: Literal["auto", "off"] = Field(
        default="auto", description="auto: apply the chat template of the tokenizer, if it has one"
    )
    max_tokens: Positive = Field(default=2048, description="the longest output to a request that names no limit")
    max_requests: Positive = Field(
        default=1024, description="requests that are answered or wait at the same time; more are refused with 503"
    )
    context: Natural = Field(
        default=0, description="the longest prompt plus output in tokens; 0: the model's context, at most 32768"
    )
    seed: Natural = Field(default=0, description="of the draws for requests that have no seed")


def api_key(host: str, variable: str) -> str:
    """Return the API key that requests must carry, "" for none. variable: the environment variable that holds it.

    Raises UserError when the variable is not set, and for a host that other machines reach without a key.
    """
    if variable and not os.environ.get(variable):
        raise UserError(
            f"--api-key-env {variable}: the environment variable {variable} is not set",
            code=ErrorCode.API_KEY_MISSING,
            key="--api-key-env",
        )
    if not variable and not is_loopback(host):
        raise UserError(
            f"--host {host}: other machines could use the model without a key; give --api-key-env NAME, the "
            "environment variable with a key, or leave --host out",
            code=ErrorCode.COMMAND_LINE,
            key="--host",
        )
    return os.environ[variable] if variable else ""


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a host. Of names, only `localhost` is known to be."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
