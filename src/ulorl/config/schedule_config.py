"""[rollout.schedule]: which samples decode when, and when a step ends."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from ulorl.config.fields import Natural, StrictConfig
from ulorl.config.unions import ByKind


class _ScheduleConfig(StrictConfig):
    """The keys of all schedules."""

    max_versions: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="a sample whose tokens would come from more versions of the weights is decoded to its end before "
        "the step ends, and every group that is ready then trains; 0: no limit, else at least 2",
    )
    window: Natural = Field(
        default=0,
        description="of the groups from the oldest unfinished one on, only the first so many may train (beside all "
        "older ones), so that short outputs do not train long before the long ones of their time; 0: no window",
    )
    order: Literal["fifo", "longest"] = Field(
        default="fifo",
        description="which waiting sample decodes next when the engine has no free slot for all: fifo: the oldest; "
        "longest: the one that is expected to lack the most tokens, learnt from finished samples of its problem",
    )


class SegmentScheduleConfig(_ScheduleConfig):
    """Every step opens rollout.prompts groups and decodes one segment of every sample (the paper)."""

    kind: Literal["segment"] = "segment"


class _BatchScheduleConfig(_ScheduleConfig):
    """The keys of schedules whose steps end when their batch is in."""

    factor: float = Field(
        default=1.5,
        ge=1,
        le=100,
        description="the groups in progress as a multiple of rollout.prompts, more: faster and older",
    )
    batch_tokens: Natural = Field(
        default=0,
        description="a step ends when the groups that are ready hold so many output tokens; 0: when rollout.prompts "
        "groups are ready",
    )


class OversubscribeScheduleConfig(_BatchScheduleConfig):
    """Every step begins with factor x rollout.prompts groups and ends when its batch is in."""

    kind: Literal["oversubscribe"] = "oversubscribe"


class RefillScheduleConfig(_BatchScheduleConfig):
    """A constant number of samples decodes; one that ends is replaced at once."""

    kind: Literal["refill"] = "refill"


ScheduleConfig: TypeAlias = Annotated[
    SegmentScheduleConfig | OversubscribeScheduleConfig | RefillScheduleConfig,
    ByKind(
        "segment: one segment of every sample (the paper); oversubscribe: more groups than a batch begin, and the step "
        "ends when its batch is in (APRIL); refill: a sample that ends is replaced at once, and the step ends when its "
        "batch is in"
    ),
]
