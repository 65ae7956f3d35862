"""The part that rewards share which look for the answer in an output (`reward.answer`)."""

from __future__ import annotations

from collections.abc import Sequence

from ulorl.answers.extraction import PROSE, Found, locate
from ulorl.config.reward_config import AnswerConfig, Place
from ulorl.rewards.explanation import thinking
from ulorl.rewards.reward import Reward, Verdict
from ulorl.types import Problem


class AnswerReward(Reward):
    """A reward of the answer that an output holds. An output without an answer is wrong."""

    places: Sequence[Place] = PROSE  # that are searched where `reward.answer.find` names none

    def __init__(self, answer: AnswerConfig | None = None) -> None:
        """answer: where the answer is looked for; None: the defaults."""
        self._answer = answer or AnswerConfig()

    @property
    def searched(self) -> str:
        """The places that are searched, in words."""
        return ", ".join(self._answer.find or self.places)

    def locate(self, text: str) -> Found | None:
        """Return the answer of an output, None when there is none."""
        return locate(text, self._answer, self.places)

    def without_answer(self) -> Verdict:
        """Return the verdict on an output without an answer."""
        return Verdict(0.0, None, reason=f"no answer found in {self.searched}")

    def explain(self, problem: Problem, text: str, verdict: Verdict) -> str:  # noqa: ARG002
        """Return the reason of a verdict; where no answer was found, also that thinking does not count."""
        if verdict.answer is None and verdict.reason:
            return verdict.reason + thinking(self._answer, text)
        return verdict.reason

    def output_with(self, answer: str) -> str:
        r"""Return an output that holds `answer` in the first place that is searched, by default a \boxed{}."""
        find = self._answer.find
        if "boxed" in find or not find:
            answer = f"\\boxed{{{answer}}}"
        elif "tags" in find:
            answer = f"<{self._answer.tag}>{answer}</{self._answer.tag}>"
        return f"</{self._answer.think_tag}>\n{answer}" if self._answer.thinking == "required" else answer
