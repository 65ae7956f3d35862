"""The seam every reward stands behind."""

from __future__ import annotations

from typing import Protocol

from ulorl.types import Problem


class RewardError(Exception):
    """The reward failed: it raised, took too long or died. That says nothing about the output."""


class Reward(Protocol):
    """Judges a finished output. Truncated samples never come here: the loop gives them 0."""

    def __call__(self, problem: Problem, text: str) -> float:
        """1.0 when `text`, the decoded output without special tokens, answers `problem` rightly, else 0.0; an output
        without an answer is 0.0. Raises RewardError (any other exception counts the same) when it cannot tell, and
        UserError for what no second try can mend."""
        ...
