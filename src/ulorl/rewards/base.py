"""The seam every reward stands behind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ulorl.types import Poll, Problem


class RewardError(Exception):
    """The reward failed: it raised, took too long or died. That says nothing about the output."""


@dataclass(frozen=True)
class Verdict:
    """What a reward says of a finished output."""

    reward: float  # 1.0: the output answers the problem rightly, else 0.0
    answer: str | None = ""  # what was judged; "": the reward does not tell; None: the output holds no answer


class Reward(ABC):
    """Judges a finished output. Truncated samples never come here: the loop gives them 0."""

    @abstractmethod
    def __call__(self, problem: Problem, text: str) -> Verdict:
        """text: the decoded output without special tokens; one without an answer is wrong. Raises RewardError (any
        other exception counts the same) when it cannot tell, and UserError for what no second try can mend."""

    def begin(self, problem: Problem, text: str) -> Callable[[Poll], Verdict]:
        """What gives the verdict, as `__call__`, when it is called. A reward that judges in the background, or many
        outputs at once, starts or collects here, while other samples are still being decoded."""
        return lambda _: self(problem, text)

    def metrics(self) -> Mapping[str, float | int | None]:
        """Its own numbers since they were asked for last, for metrics.jsonl."""
        return {}
