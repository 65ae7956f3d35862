"""[objective.entropy]: what holds the policy's entropy up, besides the MPT mask and clip-higher."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from ulorl.config.fields import Finding, RefusedKeys, Share, StrictConfig
from ulorl.config.unions import ByKind


class NoEntropyConfig(StrictConfig):
    """Nothing."""

    kind: Literal["off"] = "off"


class ClipCovConfig(StrictConfig):
    """Clip-Cov: a few tokens with a high covariance of log-prob and advantage are left out of the loss."""

    kind: Literal["clip_cov"] = "clip_cov"
    share: Share = Field(default=2e-4, description="how many tokens are left out, as a share of all tokens")
    low: float = Field(default=1.0, description="they are drawn from the tokens whose covariance is above this")
    high: float = Field(default=5.0, description="and below this")

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.low >= self.high:
            raise RefusedKeys(Finding("low", f"must be below high={self.high}, found {self.low}"))
        return self


class KlCovConfig(StrictConfig):
    """KL-Cov: the tokens with the highest covariance of log-prob and advantage are held near the old policy."""

    kind: Literal["kl_cov"] = "kl_cov"
    share: Share = Field(default=2e-4, description="how many tokens are penalised, as a share of all tokens")
    coefficient: float = Field(default=1.0, gt=0, description="the weight of their KL divergence from the old policy")


class TopEntropyConfig(StrictConfig):
    """Only the tokens with the highest entropy are trained."""

    kind: Literal["top_entropy"] = "top_entropy"
    share: Share = Field(default=0.2, description="how many tokens are trained, as a share of all tokens")


class EntropyBonusConfig(StrictConfig):
    """The mean token entropy is added to the objective, with a coefficient that rises while it is below a target."""

    kind: Literal["bonus"] = "bonus"
    coefficient: float = Field(default=0.0, ge=0, description="the coefficient of the first update")
    step: float = Field(
        default=0.005,
        ge=0,
        description="the coefficient rises by this in each update whose entropy is below the target, and falls by it "
        "in each other; 0: it is constant",
    )
    target: float = Field(
        default=0.2, ge=0, description="the target entropy in nats; in an update whose entropy is above it, no bonus"
    )
    highest: float = Field(default=1.0, ge=0, description="the largest coefficient")

    @model_validator(mode="after")
    def _some_bonus(self) -> Self:
        if not self.coefficient and not self.step:
            raise RefusedKeys(Finding("step", "0 with coefficient=0 is never a bonus; set one of them above 0"))
        if self.coefficient > self.highest:
            raise RefusedKeys(Finding("coefficient", f"must be at most highest={self.highest}: {self.coefficient}"))
        return self


EntropyConfig: TypeAlias = Annotated[
    NoEntropyConfig | ClipCovConfig | KlCovConfig | TopEntropyConfig | EntropyBonusConfig,
    ByKind(
        "off: nothing; clip_cov: a few tokens with a high covariance of log-prob and advantage are left out of the "
        "loss; kl_cov: those with the highest covariance are held near the old policy; top_entropy: only the tokens "
        "with the highest entropy are trained; bonus: the entropy is part of the objective"
    ),
]
