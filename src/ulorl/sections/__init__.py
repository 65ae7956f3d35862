"""The sections of the configuration tree: every key, its default and its check. No torch, no engine."""

from __future__ import annotations

from ulorl.sections.base import Natural, Positive, Section, Share
from ulorl.sections.reward import Answer, ModelSettings, Place, Reward, Verifier
from ulorl.sections.training import (
    PACKED_MASK_TOKENS,
    Data,
    Engine,
    Eval,
    Log,
    Lora,
    Model,
    Mpt,
    Objective,
    Optim,
    Rollout,
    Rope,
    Run,
    Vllm,
)  # fmt: skip

__all__ = [
    "PACKED_MASK_TOKENS", "Answer", "Data", "Engine", "Eval", "Log", "Lora", "Model", "ModelSettings", "Mpt", "Natural",
    "Objective", "Optim", "Place", "Positive", "Reward", "Rollout", "Rope", "Run", "Section", "Share", "Verifier",
    "Vllm",
]  # fmt: skip
