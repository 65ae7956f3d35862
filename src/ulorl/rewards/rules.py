"""The mathematical reward: math-verify compares the output's answer with the reference."""

from __future__ import annotations

from ulorl.rewards.base import Reward, Verdict
from ulorl.rewards.judge import SECONDS, judge
from ulorl.types import Problem


class MathReward(Reward):
    r"""1.0 when the output's answer equals `problem.answer` mathematically.

    The answer is what the last complete \boxed{...} holds; without one, the last expression math-verify finds in the
    output's last 4,000 characters ("the answer is ..." first, then any formula or number). No answer, or one that
    cannot be parsed, is 0.0; so is one that takes more than 4 seconds of CPU time to compare. Works from any thread.

    timeout: seconds by the clock, after which a judge that does not answer has failed.
    """

    def __init__(self, timeout: float = SECONDS) -> None:
        self._timeout = timeout

    def __call__(self, problem: Problem, text: str) -> Verdict:
        return Verdict(judge("math", self._timeout).score(reference=problem.answer, text=text))
