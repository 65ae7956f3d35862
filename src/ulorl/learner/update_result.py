"""The result of an update: its counts, its means by metric name, and the mini-batches that it skipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from ulorl.objective.mismatch import logprob_mismatch
from ulorl.types import LogProbs

AGES = ("age/0", "age/1", "age/2", "age/3", "age/4_or_more")  # shares of the trained tokens, by their age in versions


@dataclass(frozen=True)
class Skipped:
    """A mini-batch whose loss or gradient was not finite. It changed neither the weights nor AdamW's moments."""

    cause: str
    sample_ids: tuple[int, ...]  # of the micro-batch with that loss; of the whole mini-batch for a gradient

    def __str__(self) -> str:
        return f"{self.cause}, of samples {_ranges(self.sample_ids)}"


@dataclass(frozen=True)
class Update:
    """The result of one update. Without a group to train on, and when every mini-batch was skipped, nothing changed:
    `steps` is 0 and there are no means. Samples, tokens and means are those of the mini-batches that were trained."""

    steps: int = 0  # gradient updates
    samples: int = 0
    tokens: int = 0
    groups_dropped: int = 0  # by dynamic sampling
    groups_unscored: int = 0  # left out, because a member has no reward
    means: dict[str, float] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()


@dataclass
class UpdateSums:
    """Sums over the tokens of an update."""

    tokens: int = 0
    kept: int = 0  # tokens in the loss
    loss: float = 0.0
    entropy: float = 0.0
    mpts: int = 0
    masked: int = 0
    staleness: int = 0  # the sum of all ages: versions between a token's and the update's start
    ages: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(AGES), np.int64))  # tokens of each of AGES
    ratio: float = 0.0
    clipped: int = 0
    tis: float | None = None  # of truncated importance weights, when they are used
    updates: int = 0  # gradient updates made so far
    newest: list[tuple[LogProbs, LogProbs]] = field(default_factory=list)  # engine's and learner's, same weights

    @classmethod
    def total(cls, parts: Sequence[UpdateSums]) -> UpdateSums:
        """Return the sums over all parts, each of other samples of the same update."""
        if len(parts) == 1:
            return parts[0]
        summed = {f.name: sum(getattr(part, f.name) for part in parts) for f in fields(cls) if f.name in _ADDED}
        weights = [part.tis for part in parts if part.tis is not None]
        newest = [pair for part in parts for pair in part.newest]
        return cls(**summed, tis=sum(weights) if weights else None, updates=parts[0].updates, newest=newest)

    def means(self) -> dict[str, float]:
        """Return the means by metric name. Those of the importance ratio are over the tokens in the loss, those of the
        mismatch over tokens that the engine drew with the weights at the update's start; absent without such tokens."""
        means = {
            "train/loss": self.loss / self.tokens,
            "entropy/mean": self.entropy / self.tokens,
            "mpt/fraction": self.mpts / self.tokens,
            "mpt/masked_fraction": self.masked / self.tokens,
            "rollout/staleness_mean": self.staleness / self.tokens,
            **dict(zip(AGES, (self.ages / self.tokens).tolist(), strict=True)),
        }
        if self.kept:
            means |= {
                "importance/ratio_mean": self.ratio / self.kept,
                "importance/clip_fraction": self.clipped / self.kept,
            }
            if self.tis is not None:
                means["importance/tis_mean"] = self.tis / self.kept
        engine, learner = (np.concatenate(parts) for parts in zip(*self.newest, strict=True))
        if apart := logprob_mismatch(engine, learner):
            means |= {"mismatch/mean": apart.mean, "mismatch/max": apart.max, "mismatch/kl": apart.kl}
        return means


_ADDED = ("tokens", "kept", "loss", "entropy", "mpts", "masked", "staleness", "ages", "ratio", "clipped")


def _ranges(ids: Sequence[int]) -> str:
    """Return ids as text: 3 4 5 9 as "3-5, 9"."""
    runs: list[list[int]] = []
    for id in sorted(ids):
        if runs and runs[-1][-1] == id - 1:
            runs[-1][1:] = [id]
        else:
            runs.append([id])
    return ", ".join("-".join(map(str, run)) for run in runs)
