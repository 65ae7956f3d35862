"""Specifies an engine, apart from the model that it decodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ulorl.config.engine_config import EngineConfig
from ulorl.types import Sampling

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class EngineSpec:
    """Everything that decides how an engine is made, apart from the model.

    engine: which engine, and its settings. device: where the model runs; an engine in processes of its own receives
    new weights from there. sampling: the one whose log-probs are trained on. longest: tokens of the longest prompt with
    its output; an engine that reserves memory reserves as much. weights_dtype: the learner's, before the engine rounds
    them to its own dtype. version: of the weights that the engine starts with.
    cpu_kernels: whether the embedded engine uses the faster products and the fused decode step of `models/cpu`.
    """

    engine: EngineConfig
    device: torch.device
    sampling: Sampling
    longest: int
    weights_dtype: Dtype = "float32"
    version: int = 0
    cpu_kernels: bool = True

    @property
    def dtype(self) -> Dtype:
        """The dtype of the engine's copy of the weights."""
        return self.weights_dtype if self.engine.dtype == "auto" else self.engine.dtype
