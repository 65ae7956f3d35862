"""The interface of every learner: update, begin, score, publish, save, load, export, close.

The loop, the weight check and the checkpoints know a learner by this interface only, so that it may live in one process
or in many.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ulorl.cancellation import NEVER, CancelToken
from ulorl.learner.experience import Experience
from ulorl.learner.update_result import Update
from ulorl.types import Group, LogProbs


class LearnerLost(Exception):  # noqa: N818
    """A process of the learner died or hung, and with it the weights since the newest checkpoint, from which a new
    learner can be made."""


@dataclass(frozen=True, eq=False)
class Weights:
    """Published weights of one version.

    tensors: yields them by the plain model's parameter names, each whole, any number of times. They are the weights at
    the time of iteration, so they must be read before the next update begins; with `rollout.overlap` they are those of
    `version` at any time.
    """

    version: int
    tensors: Iterable[tuple[str, Tensor]]


class Trainer(Protocol):
    """What one step of Algorithm 1 needs of a learner."""

    def update(self, groups: Sequence[Group], cancel: CancelToken = NEVER) -> Update:
        """Train on the groups that are ready: one gradient update for each mini-batch.

        A mini-batch whose loss or gradient is not finite is skipped. After `optim.max_skipped` skipped mini-batches in
        a row (`skipped_in_row`) the update ends, and the caller should stop the run. Raises Cancelled before a
        micro-batch as long as no gradient update was made; an update that has changed the weights is finished first.
        """
        ...

    def publish(self) -> Weights:
        """Return the present weights and their version, for an engine."""
        ...


class Learner(Trainer, Protocol):
    """The policy that trains."""

    @property
    def version(self) -> int:
        """The version number of the present weights."""
        ...

    @property
    def updates(self) -> int:
        """The gradient updates made since the run began."""
        ...

    @property
    def skipped_in_row(self) -> int:
        """The mini-batches skipped in a row up to now, because their loss or gradient was not finite."""
        ...

    def begin(self, groups: Sequence[Group], cancel: CancelToken = NEVER) -> Future[Update]:
        """Start an update in the background and return its result as a future; the future raises what `update` raises.

        Until it is done, only `version`, `updates` and `skipped_in_row` may be read, and they may change at its end.
        """
        ...

    def score(self, experience: Sequence[Experience], cancel: CancelToken = NEVER) -> tuple[list[LogProbs], float]:
        """Return the log-probs of every row's tokens under the present weights, [T] each, and the mean token entropy.
        Raises Cancelled before a micro-batch."""
        ...

    def save(self, folder: Path, *, background: bool = False) -> Future[None]:
        """Write weights and moments into a folder, from which a learner of any number of ranks resumes.

        background: copy them now and write while the caller continues; otherwise the returned future is done. The
        future raises OSError when a file cannot be written, and UserError when the ranks do not share the folder. After
        that, the learner can be used as before.
        """
        ...

    def load(self, folder: Path) -> None:
        """Load the moments, and weights that are not in a transformers folder, of what `save` wrote."""
        ...

    def export(self, folder: Path) -> None:
        """Write a transformers folder, without the tokenizer; LoRA adapters are merged into the weights."""
        ...

    def close(self) -> None:
        """Release memory, threads and processes."""
        ...
