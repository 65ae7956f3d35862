"""The result of an update: its counts, its means by metric name, and the mini-batches that it skipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
from torch import Tensor

from ulorl.learner.age_sums import AgeSums
from ulorl.learner.batching import Batch
from ulorl.learner.experience import Experience
from ulorl.learner.microbatch_loss import MicrobatchLoss
from ulorl.learner.observed import TokenValues, split_values
from ulorl.objective.mismatch import logprob_mismatch
from ulorl.types import LogProbs


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
    advantages: dict[int, float] = field(default_factory=dict)  # of the samples to train on, by id
    token_values: dict[int, TokenValues] = field(default_factory=dict)  # of the observed samples, by id


@dataclass
class UpdateSums:
    """Sums over the tokens of an update."""

    tokens: int = 0
    kept: int = 0  # tokens in the loss
    loss: float = 0.0
    entropy: float = 0.0
    mpts: int = 0
    mpt_entropy: float = 0.0
    masked: int = 0
    rejected: int | None = None  # by the engine mask, when there is one
    chosen: int | None = None  # by the entropy control, when it chooses
    staleness: int = 0  # the sum of all ages: versions between a token's and the update's start
    ages: AgeSums = field(default_factory=AgeSums)
    ratio: float = 0.0
    clipped: int = 0
    tis: float | None = None  # of truncated importance weights, when they are used
    updates: int = 0  # gradient updates made so far
    observe: frozenset[int] = frozenset()  # ids of the samples whose tokens are kept one by one
    observed: dict[int, TokenValues] = field(default_factory=dict)
    newest: list[tuple[LogProbs, LogProbs]] = field(default_factory=list)  # engine's and learner's, same weights

    def add(self, batch: Batch, loss: MicrobatchLoss, logprobs_N: Tensor, version: int) -> None:
        """Add a micro-batch. logprobs_N: detached, under the weights that train. version: at the update's start."""
        self.tokens += len(logprobs_N)
        self.kept += int(loss.seen.tokens)
        self.loss += float(loss.loss_sum.detach())
        self.entropy += float(loss.entropy_N.double().sum())
        self.mpts += int(loss.mpt_N.sum())
        self.mpt_entropy += float(loss.entropy_N[loss.mpt_N].double().sum())
        self.masked += int(loss.masked_N.sum())
        self.ratio += float(loss.seen.ratio)
        self.clipped += int(loss.seen.clipped)
        if loss.rejected_N is not None:
            self.rejected = (self.rejected or 0) + int(loss.rejected_N.sum())
        if loss.chosen_N is not None:
            self.chosen = (self.chosen or 0) + int(loss.chosen_N.sum())
        if loss.weights_N is not None:
            self.tis = (self.tis or 0.0) + float(loss.weights_N[loss.kept_N].double().sum())
        age_N, apart_N = version - batch.versions_N, None
        if loss.at_start_N is not None or not self.updates:
            learned_N = logprobs_N if loss.at_start_N is None else loss.at_start_N
            newest_N, apart_N = age_N == 0, (learned_N - batch.recorded_N).abs()
            self.newest.append((batch.recorded_N[newest_N].cpu().numpy(), learned_N[newest_N].cpu().numpy()))
        self.staleness += int(age_N.sum())
        self.ages = self.ages + AgeSums.of(
            age_N,
            entropy=loss.entropy_N,
            kept=loss.kept_N,
            ratio=loss.seen.ratio_N,
            clipped=loss.seen.clipped_N,
            apart=apart_N,
        )

    def copy(self) -> UpdateSums:
        """Return the sums as they are now, to return to when a mini-batch is skipped."""
        return replace(self, newest=[*self.newest], observed={**self.observed})

    def observe_tokens(self, loss: MicrobatchLoss, experience: Sequence[Experience]) -> None:
        """Keep the token values of the samples of a micro-batch that are in `observe`."""
        if self.observe.intersection(one.sample_id for one in experience):
            entropy, kept = loss.entropy_N.float().cpu().numpy(), loss.kept_N.cpu().numpy()
            self.observed |= split_values(entropy, kept, experience, self.observe)

    @classmethod
    def total(cls, parts: Sequence[UpdateSums]) -> UpdateSums:
        """Return the sums over all parts, each of other samples of the same update."""
        if len(parts) == 1:
            return parts[0]
        summed = {f.name: sum(getattr(part, f.name) for part in parts) for f in fields(cls) if f.name in _ADDED}
        optional = {name: [getattr(part, name) for part in parts] for name in ("tis", "rejected", "chosen")}
        present = {name: [value for value in values if value is not None] for name, values in optional.items()}
        return cls(
            **summed,
            **{name: sum(values) for name, values in present.items() if values},
            ages=sum((part.ages for part in parts), AgeSums()),
            updates=parts[0].updates,
            newest=[pair for part in parts for pair in part.newest],
            observed={id: values for part in parts for id, values in part.observed.items()},
        )

    def means(self) -> dict[str, float]:
        """Return the means by metric name. Those of the importance ratio are over the tokens in the loss, those of the
        mismatch over tokens that the engine drew with the weights at the update's start; absent without such tokens."""
        means = {
            "train/loss": self.loss / self.tokens,
            "entropy/mean": self.entropy / self.tokens,
            "mpt/fraction": self.mpts / self.tokens,
            "mpt/masked_fraction": self.masked / self.tokens,
            "rollout/staleness_mean": self.staleness / self.tokens,
            **self.ages.means(),
        }
        if self.entropy:
            means["mpt/entropy_share"] = self.mpt_entropy / self.entropy
        if self.rejected is not None:
            means["importance/rejected_fraction"] = self.rejected / self.tokens
        if self.chosen is not None:
            means["entropy/chosen_fraction"] = self.chosen / self.tokens
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


_ADDED = (
    "tokens", "kept", "loss", "entropy", "mpts", "mpt_entropy", "masked", "staleness", "ratio", "clipped",
)  # fmt: skip


def _ranges(ids: Sequence[int]) -> str:
    """Return ids as text: 3 4 5 9 as "3-5, 9"."""
    runs: list[list[int]] = []
    for id in sorted(ids):
        if runs and runs[-1][-1] == id - 1:
            runs[-1][1:] = [id]
        else:
            runs.append([id])
    return ", ".join("-".join(map(str, run)) for run in runs)
