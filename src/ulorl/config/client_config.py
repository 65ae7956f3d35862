"""A model that is asked for whole outputs: it cleans data, or judges answers."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ulorl.config.engine_config import EngineConfig
from ulorl.config.fields import Natural, Positive, Share, StrictConfig


class ClientConfig(StrictConfig):
    """A model that is asked for whole outputs: it cleans data, or judges answers."""

    kind: Literal["endpoint", "engine"] = Field(
        default="endpoint", description="an OpenAI-compatible server, or our own rollout engine in this process"
    )
    name: str = Field(
        min_length=1, description="endpoint: the model's name there; engine: a transformers folder or hub name"
    )
    base_url: str = Field(default="", description="endpoint: for example http://localhost:8000/v1; empty: OpenAI's own")
    api_key_env: str = Field(default="OPENAI_API_KEY", description="endpoint: the environment variable with the key")
    concurrency: Positive = Field(default=16, description="endpoint: requests at once")
    timeout: float = Field(default=600, gt=0, description="endpoint: seconds a request may take")
    retries: Natural = Field(default=4, description="endpoint: after time-outs, 408, 409, 429 and 5xx, with back-off")
    max_failures: Positive = Field(default=16, description="endpoint: requests that fail in a row, then the run stops")
    system: str = Field(default="", description="a system message")
    chat: Literal["auto", "off"] = Field(
        default="auto", description="engine: auto: through the tokenizer's chat template, where it has one"
    )
    temperature: float = Field(default=0.6, ge=0, description="0 is greedy")
    top_p: Share = Field(default=1.0, description="nucleus; 1: off")
    max_tokens: Positive = Field(default=8192, description="of an output")
    seed: Natural = Field(default=0, description="engine: of the draws")
    device: str = Field(
        default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="engine: auto, cpu, cuda or cuda:N"
    )
    engine: EngineConfig = EngineConfig()

    @model_validator(mode="after")
    def _no_secret_in_url(self) -> Self:
        if "@" in self.base_url.partition("//")[2].partition("/")[0]:
            raise ValueError(
                "base_url holds a user's name or password, and configurations are saved in plain text; put the key "
                "into the environment variable that api_key_env names"
            )
        return self
