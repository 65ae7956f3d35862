"""Configures a model that answers prompts, to clean data or to judge answers: at a server, or in our own engine."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from ulorl.config.engine_config import EngineConfig, TorchEngineConfig
from ulorl.config.fields import FIXED, MAY_CHANGE, Finding, Natural, Positive, RefusedKeys, Share, StrictConfig
from ulorl.config.unions import ByKind
from ulorl.error_codes import ErrorCode


class BaseClientConfig(StrictConfig):
    """The keys of every client."""

    name: str = Field(
        min_length=1,
        description="the model: its name at the server, or with kind=engine a transformers folder or a hub name",
    )
    system: str = Field(default="", description="the system message; empty: none")
    temperature: float = Field(default=0.6, ge=0, description="the sampling temperature; 0 is greedy")
    top_p: Share = Field(default=1.0, description="nucleus sampling; 1: off")
    max_tokens: Positive = Field(default=8192, description="the longest output, its reasoning included")


class EndpointClientConfig(BaseClientConfig):
    """A model behind an OpenAI-compatible server."""

    kind: Literal["endpoint"] = "endpoint"
    base_url: str = Field(
        default="",
        description="the server, for example http://localhost:8000/v1; empty: OpenAI",
        json_schema_extra=MAY_CHANGE,
    )
    api_key_env: str = Field(
        default="OPENAI_API_KEY",
        description="the environment variable that holds the API key",
        json_schema_extra=MAY_CHANGE,
    )
    concurrency: Positive = Field(
        default=16, description="how many requests run at the same time", json_schema_extra=MAY_CHANGE
    )
    timeout: float = Field(
        default=600, gt=0, description="seconds that a request may take", json_schema_extra=MAY_CHANGE
    )
    retries: Natural = Field(
        default=4,
        description="retries of a request, with back-off, after a time-out or the status 408, 409, 429 or 5xx",
        json_schema_extra=MAY_CHANGE,
    )
    max_failures: Positive = Field(
        default=16, description="the run stops after so many failed requests in a row", json_schema_extra=MAY_CHANGE
    )

    @model_validator(mode="after")
    def _no_secret_in_url(self) -> Self:
        if "@" in self.base_url.partition("//")[2].partition("/")[0]:
            raise RefusedKeys(
                Finding(
                    "base_url",
                    "holds a user name or a password, and configurations are saved as plain text; put the key into "
                    "the environment variable that api_key_env names",
                    ErrorCode.CONFIG_BAD_VALUE,
                )
            )
        return self


class EngineClientConfig(BaseClientConfig):
    """A model that our own rollout engine decodes in this process."""

    kind: Literal["engine"] = "engine"
    chat: Literal["auto", "off"] = Field(
        default="auto", description="auto: apply the chat template of the tokenizer, if it has one"
    )
    seed: Natural = Field(default=0, description="the seed of the samples")
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")
    engine: EngineConfig = Field(default=TorchEngineConfig(), json_schema_extra=FIXED)


ClientConfig: TypeAlias = Annotated[
    EndpointClientConfig | EngineClientConfig,
    ByKind("endpoint: an OpenAI-compatible server; engine: our own rollout engine in this process"),
]
