"""The seam every reward stands behind."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ulorl.errors import UserError
from ulorl.types import Poll, Problem


class RewardError(Exception):
    """The reward failed: it raised, took too long or died. That says nothing about the output."""


@dataclass(frozen=True)
class Verdict:
    """What a reward says of a finished output."""

    reward: float  # 1.0: the output answers the problem rightly, else 0.0
    answer: str | None = ""  # what was judged; "": the reward does not tell; None: the output holds no answer
    place: str = field(default="", compare=False)  # where that stood, as in `reward.answer.find`; "": not told
    reason: str = field(default="", compare=False)  # for people, as far as it costs nothing to say


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


def judged(
    reward: Reward,
    problem: Problem,
    text: str,
    begun: Callable[[Poll], Verdict],
    poll: Poll,
    *,
    retries: int,
    pause: float,
) -> tuple[Verdict | None, Exception | None]:
    """The verdict that `begun` gives, or the reward when it is asked again, `retries` times, `pause` seconds apart;
    else None, and what went wrong the last time. Raises UserError as the reward."""
    failed: Exception | None = None
    for attempt in range(1 + retries):
        if attempt:
            time.sleep(pause)
            poll()
        try:
            return (reward.begin(problem, text) if attempt else begun)(poll), None
        except UserError:
            raise
        except Exception as error:
            failed = error
    return None, failed
