"""Rollout schedules: which groups a step opens, how many samples decode at once, when the step is over, and how many
of the finished groups are trained.

They are plain values without state: everything they decide follows from the counts of a step (`StepCounts`), which
follow from the two pools. So a resumed run makes the same decisions, and the planner runs the same schedules.

Groups count as N = `prompts` a step with G = `group` samples each. All schedules train each group once, whole, and drop
nothing.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, TypeAlias

Order: TypeAlias = Literal["fifo", "longest"]  # the order of admission: first in, first out; the longest expected first


@dataclass
class StepCounts:
    """What a schedule sees of a step in progress."""

    beginning: bool = True  # no sample was sent to the engine in this step
    open: int = 0  # groups that were opened and not trained yet
    in_flight: int = 0  # samples in the engine
    waiting: int = 0  # unfinished samples that were not sent to the engine in this step
    ready: int = 0  # finished groups that the collect window lets train
    ready_tokens: int = 0  # output tokens of these groups
    must_finish: int = 0  # unfinished samples that have one version less than `max_versions`


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """The settings that all schedules share.

    prompts: groups a step (N). group: samples a group (G). max_versions: a sample whose tokens would come from more
    versions is decoded to its end before the step may end, and the step then trains every group that is ready; 0: no
    limit; 1 is not possible here. window: of the groups from the oldest one with unfinished samples on, only the first
    so many may train, beside all older ones (windowed first in, first out), so that short groups cannot run ahead of
    long ones; 0: no window. order: in which waiting samples enter the engine.
    """

    prompts: int
    group: int
    max_versions: int = 0
    window: int = 0
    order: Order = "fifo"

    def __post_init__(self) -> None:
        if self.max_versions == 1:
            raise ValueError("max_versions=1: take one segment, which finishes every sample within its step")

    @property
    def segment_tokens(self) -> int:
        """The most tokens that a sample decodes in a step; 0: as many as it has left."""
        return 0

    @property
    def places(self) -> int:
        """The most samples in the engine at once; 0: no limit."""
        return 0

    @abstractmethod
    def new_groups(self, counts: StepCounts) -> int:
        """Return the number of groups to open now."""

    @abstractmethod
    def over(self, counts: StepCounts) -> bool:
        """Return whether the step ends now; what is in the engine is then stopped and carried over. A step also ends
        when no sample is left to decode."""

    @abstractmethod
    def trained(self, tokens: Sequence[int]) -> int:
        """Return how many of the groups that are ready are trained, the oldest first.

        tokens: the output tokens of each group that is ready.
        """

    @abstractmethod
    def expected_segments(self, carried: int) -> int:
        """Return about how many segments end in a step that begins with `carried` samples, for a progress bar."""


@dataclass(frozen=True, kw_only=True)
class SegmentSchedule(Schedule):
    """The paper's schedule (section 3.1, Algorithm 1): every step opens N groups, decodes one segment of every sample,
    and trains every group that is finished. tokens: the length of a segment, L / k."""

    tokens: int

    @property
    def segment_tokens(self) -> int:
        return self.tokens

    def new_groups(self, counts: StepCounts) -> int:
        return self.prompts if counts.beginning else 0

    def over(self, counts: StepCounts) -> bool:  # noqa: ARG002 - when no sample is left
        return False

    def trained(self, tokens: Sequence[int]) -> int:
        return len(tokens)

    def expected_segments(self, carried: int) -> int:
        return carried + self.prompts * self.group


@dataclass(frozen=True, kw_only=True)
class _BatchSchedule(Schedule):
    """A step ends when its batch is in; the samples that still decode are stopped and carried over.

    factor: how much more than a batch is in progress. batch_tokens: a step ends when the groups that are ready hold so
    many output tokens, and trains no more groups than that takes; 0: it ends when N groups are ready, and trains N.
    """

    factor: float
    batch_tokens: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor < 1:
            raise ValueError(f"factor={self.factor} must be at least 1, or a step would not get its batch")

    def over(self, counts: StepCounts) -> bool:
        enough = counts.ready_tokens >= self.batch_tokens if self.batch_tokens else counts.ready >= self.prompts
        return enough and not counts.must_finish

    def trained(self, tokens: Sequence[int]) -> int:
        if self.max_versions:  # groups that finish while the step waits would otherwise wait longer every step
            return len(tokens)
        if not self.batch_tokens:
            return min(self.prompts, len(tokens))
        before = accumulate(tokens, initial=0)  # the tokens of all earlier groups
        return sum(earlier < self.batch_tokens for earlier, _ in zip(before, tokens, strict=False))

    def expected_segments(self, carried: int) -> int:  # noqa: ARG002 - as many as it trains, whatever is carried
        return self.prompts * self.group


@dataclass(frozen=True, kw_only=True)
class OversubscribeSchedule(_BatchSchedule):
    """APRIL's schedule (arXiv 2509.18521): a step begins with factor x N open groups. N more are opened whenever all
    of them have ended with fewer tokens than `batch_tokens`."""

    def new_groups(self, counts: StepCounts) -> int:
        if counts.beginning:
            return max(0, _ceil(self.factor * self.prompts) - counts.open)
        return 0 if counts.in_flight or counts.waiting else self.prompts


@dataclass(frozen=True, kw_only=True)
class RefillSchedule(_BatchSchedule):
    """A constant number of samples decodes, factor x N x G: one that ends is replaced at once.

    A sample then has 1 + factor versions on average in steady state, when every step trains N groups.
    """

    @property
    def places(self) -> int:
        return _ceil(self.factor * self.prompts * self.group)

    def new_groups(self, counts: StepCounts) -> int:
        return max(0, math.ceil((self.places - counts.in_flight - counts.waiting) / self.group))


def _ceil(number: float) -> int:
    return math.ceil(round(number, 9))  # 1.12 x 25 is 28.000000000000004
