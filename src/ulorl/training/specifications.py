"""Turns the configuration into the values that the functions and constructors of lower layers take."""

from __future__ import annotations

from typing import Any

from ulorl.config.data_config import DataConfig
from ulorl.config.training_config import RolloutConfig
from ulorl.config.tree import Config
from ulorl.data.prompts import PromptFormat
from ulorl.engines.engine_spec import EngineSpec
from ulorl.engines.factory import pick_device
from ulorl.evaluation.avg_at_k import EvaluationSettings
from ulorl.learner.policy_learner import LearnerSpec
from ulorl.models.model_source import ModelSource
from ulorl.rollout.schedules import OversubscribeSchedule, RefillSchedule, Schedule, SegmentSchedule
from ulorl.types import Sampling


def model_source(cfg: Config, path: str | None = None) -> ModelSource:
    """Return the source of `model.path`, or of another folder that is read with the same settings."""
    return ModelSource(path or cfg.model.path, cfg.model.trust_remote_code, cfg.model.rope)


def prompt_format(data: DataConfig) -> PromptFormat:
    """Return how the problems of `data` become prompts."""
    return PromptFormat(data.template, data.system, data.chat)


def engine_spec(cfg: Config, *, longest: int, version: int = 0) -> EngineSpec:
    """Return what the rollout's engine is made for.

    longest: tokens of the longest prompt with its output. version: of the weights that it starts with.
    """
    return EngineSpec(
        engine=cfg.engine,
        device=pick_device(cfg.model.device),
        sampling=rollout_sampling(cfg),
        longest=longest,
        weights_dtype=cfg.model.dtype,
        version=version,
        cpu_kernels=cfg.model.cpu_kernels,
    )


def rollout_schedule(rollout: RolloutConfig) -> Schedule:
    """Return the schedule of the rollout."""
    settings = rollout.schedule
    shared: dict[str, Any] = dict(
        prompts=rollout.prompts,
        group=rollout.group,
        max_versions=settings.max_versions,
        window=settings.window,
        order=settings.order,
    )
    if settings.kind == "segment":
        return SegmentSchedule(tokens=rollout.segment_tokens, **shared)
    batch = OversubscribeSchedule if settings.kind == "oversubscribe" else RefillSchedule
    return batch(factor=settings.factor, batch_tokens=settings.batch_tokens, **shared)


def rollout_sampling(cfg: Config) -> Sampling:
    """Return how the rollout draws tokens."""
    return Sampling(cfg.rollout.temperature, cfg.rollout.top_p, cfg.rollout.top_k)


def evaluation_settings(cfg: Config) -> EvaluationSettings:
    """Return how held-out problems are answered."""
    return EvaluationSettings(
        samples=cfg.eval.samples,
        sampling=Sampling(cfg.eval.temperature, cfg.eval.top_p, cfg.eval.top_k),
        max_tokens=cfg.eval.max_tokens or cfg.rollout.max_tokens,
        seed=cfg.seed,
    )


def learner_spec(cfg: Config, *, pad_id: int) -> LearnerSpec:
    """Return how the learner trains."""
    return LearnerSpec(
        optim=cfg.optim,
        objective=cfg.objective,
        temperature=cfg.rollout.temperature,
        max_tokens=cfg.rollout.max_tokens,
        pad_id=pad_id,
        seed=cfg.seed,
        cpu_kernels=cfg.model.cpu_kernels,
        copy_published=cfg.rollout.overlap and cfg.backend.kind != "ray",  # Ray's object store has a copy
        token_samples=cfg.log.token_samples,
    )
