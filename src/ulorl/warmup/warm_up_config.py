"""The settings of `ulorl tiny make`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

from pydantic import Field, model_validator

from ulorl.config.fields import Finding, Natural, Positive, RefusedKeys, Share, StrictConfig


class WarmUpConfig(StrictConfig):
    """What is trained, how long and how fast. The defaults are for a model that is made in minutes on a CPU."""

    seed: Natural = Field(default=0, description="the same seed and settings give the same model on the same machine")
    steps: Positive = Field(default=400, description="supervised steps")
    schedule: Natural = Field(
        default=0,
        description="steps over which the rates fall to their floor, at least `steps`; 0: `steps`",
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="the settings of the task, as data.settings")
    batch_tokens: Positive = Field(default=2048, description="tokens of a step, padding included")
    longest_output: Positive = Field(default=512, description="longer demonstrations, in tokens, are left out")
    muon_lr: float = Field(default=6e-3, gt=0, description="the learning rate of the matrices of the layers")
    adamw_lr: float = Field(default=3e-3, gt=0, description="the learning rate of the embedding and the norms")
    rise: Positive = Field(default=20, description="steps over which the rates rise; then they fall linearly")
    floor: Share = Field(default=0.1, description="the share of the rates that remains at the end of the schedule")
    hidden: Positive = Field(default=128, description="hidden size; the MLP is three times as wide")
    layers: Positive = Field(default=4, description="layers")
    heads: Positive = Field(default=4, description="attention heads")
    kv_heads: Positive = Field(default=2, description="key and value heads")
    context: Positive = Field(default=1024, description="tokens that the model can hold, prompt and output together")
    eval_problems: Positive = Field(default=500, description="held-out problems that are answered at the end")
    eval_tokens: Positive = Field(default=384, description="the longest answer to them, in tokens")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if findings := list(self._impossible()):
            raise RefusedKeys(*findings)
        return self

    def _impossible(self) -> Iterator[Finding]:
        if self.schedule and self.schedule < self.steps:
            yield Finding("schedule", f"must be 0 or at least steps={self.steps}, found {self.schedule}")
        if self.hidden % (2 * self.heads):
            yield Finding("hidden", f"must be a multiple of 2 x heads={2 * self.heads}, found {self.hidden}")
        if self.heads % self.kv_heads:
            yield Finding("kv_heads", f"must divide heads={self.heads}, found {self.kv_heads}")
        for key in ("longest_output", "eval_tokens"):
            if getattr(self, key) >= self.context:
                yield Finding(key, f"must be less than context={self.context}, found {getattr(self, key)}")

    def rate(self, step: int) -> float:
        """Return the share of the learning rates at a step, counted from 0."""
        rest = 1 - (1 - self.floor) * step / (self.schedule or self.steps)
        return min(1.0, (step + 1) / self.rise, max(self.floor, rest))
