"""Real updates of a model, for what a whole step takes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import torch

from ulorl.config.training_config import ObjectiveConfig, OptimConfig
from ulorl.learner.policy_learner import LearnerSpec, one_device_learner
from ulorl.models.model_loading import load_model
from ulorl.models.model_source import ModelSource
from ulorl.planning.latency_profile import LatencyProfile, TokenTable
from ulorl.reproduce.setups import Setup
from ulorl.types import Group


class Updates:
    """A learner with the same model: real updates, and the weights that the engine is given."""

    def __init__(self, setup: Setup, model: ModelSource) -> None:
        spec = LearnerSpec(
            optim=OptimConfig(lr=1e-6, microbatch_tokens=2048),
            objective=ObjectiveConfig(dynamic_sampling=False),
            temperature=1.0,
            max_tokens=setup.max_tokens,
            pad_id=0,
        )
        self._learner = one_device_learner(load_model(model, dtype=torch.float32, device="cpu"), spec)
        self._tokens: list[int] = []
        self._seconds: list[float] = []

    def weights(self) -> Iterable[tuple[str, torch.Tensor]]:
        """Return the present weights by name."""
        return self._learner.publish().tensors

    def measure(self, groups: Sequence[Group]) -> None:
        """Make an update."""
        started = time.perf_counter()
        update = self._learner.update(groups)
        self._seconds.append(time.perf_counter() - started)
        self._tokens.append(update.tokens)

    def complete(self, profile: LatencyProfile) -> LatencyProfile:
        """Return `profile` with the seconds of an update in proportion to its tokens, if one was made. The first one,
        which allocates gradients and AdamW's moments, counts only where it is the only one."""
        tokens, seconds = (sum(values[len(values) > 1 :]) for values in (self._tokens, self._seconds))
        if not tokens:
            return profile
        count = max(1, len(self._tokens) - 1)
        table = TokenTable(tokens=(round(tokens / count),), seconds=(seconds / count,))
        sources = profile.sources | {"learner": f"mean of {count} updates, {profile.sources['decode']}"}
        return profile.model_copy(update={"learner": table, "sources": sources})
