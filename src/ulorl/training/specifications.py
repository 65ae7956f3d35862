"""Turns the configuration into the values that the constructors of engines and models take."""

from __future__ import annotations

from ulorl.config.tree import Config
from ulorl.engines.engine_spec import EngineSpec
from ulorl.engines.factory import pick_device
from ulorl.models.model_source import ModelSource
from ulorl.types import Sampling


def model_source(cfg: Config, path: str | None = None) -> ModelSource:
    """Return the source of `model.path`, or of another folder that is read with the same settings."""
    return ModelSource(path or cfg.model.path, cfg.model.trust_remote_code, cfg.model.rope)


def engine_spec(cfg: Config, *, longest: int, version: int = 0) -> EngineSpec:
    """Return what the rollout's engine is made for.

    longest: tokens of the longest prompt with its output. version: of the weights that it starts with.
    """
    return EngineSpec(
        engine=cfg.engine,
        device=pick_device(cfg.model.device),
        sampling=Sampling(cfg.rollout.temperature, cfg.rollout.top_p, cfg.rollout.top_k),
        longest=longest,
        weights_dtype=cfg.model.dtype,
        version=version,
    )
