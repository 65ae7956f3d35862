"""What the objective needs to know about a whole update before its first gradient.

One forward pass over all samples, under the weights at the update's start, gives it. It does not depend on how the
update is then cut into mini-batches, micro-batches and ranks. Shapes: T tokens of a sample, N of the update.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ulorl.config.entropy_config import ClipCovConfig, EntropyBonusConfig, KlCovConfig, TopEntropyConfig
from ulorl.config.training_config import ObjectiveConfig
from ulorl.learner.experience import Experience
from ulorl.objective.entropy_control import clip_cov_tokens, covariances, kl_cov_tokens, top_entropy_tokens
from ulorl.rng import Stream, sample_seeds, uniforms
from ulorl.types import LogProbs

Chosen = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class TokenScores:
    """Log-probs of the samples' tokens and the entropies at them, in nats, [T] each."""

    logprobs: Sequence[LogProbs]
    entropies: Sequence[NDArray[np.float32]]

    @property
    def mean_entropy(self) -> float:
        """The mean entropy over all tokens, in nats."""
        sums = [float(entropy_T.sum(dtype=np.float64)) for entropy_T in self.entropies]
        return sum(sums) / sum(map(len, self.entropies))


@dataclass(frozen=True, eq=False)
class UpdateStart:
    """Values of an update's samples, in their order. None: the objective does not need it."""

    logprobs: Sequence[LogProbs] | None = None  # [T] each: the old policy of POIS with several gradient updates
    chosen: Sequence[Chosen] | None = None  # [T] each: the tokens that the entropy control chose
    entropy: float | None = None  # mean over all tokens, in nats

    def of(self, samples: Sequence[int]) -> UpdateStart:
        """Return the values of some of the samples."""
        logprobs = None if self.logprobs is None else [self.logprobs[i] for i in samples]
        chosen = None if self.chosen is None else [self.chosen[i] for i in samples]
        return UpdateStart(logprobs, chosen, self.entropy)


def at_update_start(
    objective: ObjectiveConfig,
    experience: Sequence[Experience],
    score: Callable[[], TokenScores],
    *,
    minibatches: int,
    seed: int,
) -> UpdateStart:
    """Return what the objective needs; `score` makes the pass, and is called only if it is needed.

    - POIS with several gradient updates takes the weights at the start as the old policy.
    - `mpt.gate="batch"` and the entropy bonus compare the entropy of the whole update with a target.
    - Clip-Cov, KL-Cov and top-entropy tokens compare the tokens of the whole update with each other.

    seed: the run's, for the draws of Clip-Cov and KL-Cov.
    """
    mpt = objective.mpt
    old_policy = minibatches > 1 and objective.importance == "pois"
    gate = mpt.mask == "dynamic" and mpt.gate == "batch"
    compares = gate or isinstance(objective.entropy, EntropyBonusConfig)
    chooses = isinstance(objective.entropy, ClipCovConfig | KlCovConfig | TopEntropyConfig)
    if not (old_policy or compares or chooses):
        return UpdateStart()
    scores = score()
    return UpdateStart(
        scores.logprobs if old_policy else None,
        _chosen(objective, experience, scores, seed) if chooses else None,
        scores.mean_entropy if compares else None,
    )


def _chosen(
    objective: ObjectiveConfig, experience: Sequence[Experience], scores: TokenScores, seed: int
) -> list[Chosen]:
    """Return which tokens the entropy control chose, [T] for each sample."""
    lengths = [len(logprobs_T) for logprobs_T in scores.logprobs]
    control = objective.entropy
    if isinstance(control, TopEntropyConfig):
        chosen_N = top_entropy_tokens(torch.from_numpy(np.concatenate(scores.entropies)), control.share)
    else:
        cov_N = covariances(
            torch.from_numpy(np.concatenate(scores.logprobs)),
            torch.tensor(np.repeat([e.advantage for e in experience], lengths)),
        )
        draws_N = _draws([e.sample_id for e in experience], lengths, seed)
        if isinstance(control, ClipCovConfig):
            chosen_N = clip_cov_tokens(cov_N, draws_N, share=control.share, low=control.low, high=control.high)
        elif isinstance(control, KlCovConfig):
            chosen_N = kl_cov_tokens(cov_N, draws_N, control.share)
        else:
            raise ValueError(f"objective.entropy.kind={control.kind} chooses no tokens")
    return [part.numpy() for part in torch.split(chosen_N, lengths)]


def _draws(sample_ids: Sequence[int], lengths: Sequence[int], seed: int) -> Tensor:
    """Return a number in [0, 1) for each token [N]: a function of (run seed, sample id, position)."""
    seeds = np.array(sample_seeds(seed, sample_ids, Stream.COVARIANCE), dtype=np.uint64)
    positions = np.concatenate([np.arange(length) for length in lengths])
    return torch.from_numpy(uniforms(np.repeat(seeds, lengths), positions))
