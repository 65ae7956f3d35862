"""The seam every reward stands behind."""

from __future__ import annotations

from typing import Protocol

from ulorl.types import Problem


class Reward(Protocol):
    """Judges a finished output. Truncated samples never come here: the loop gives them 0."""

    def __call__(self, problem: Problem, text: str) -> float:
        """1.0 when `text`, the decoded output without special tokens, answers `problem` rightly, else 0.0; an output
        without an answer is 0.0."""
        ...
