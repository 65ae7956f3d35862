"""Rewards by rules: mathematics, numbers with units, the same text, multiple choice. docs/rewards.md says which is for
which data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from enum import Enum

from ulorl.answers.choices import chosen, options_of, stated_in
from ulorl.answers.extraction import MATH, NUMERIC, PROSE, Found, after_thinking, locate
from ulorl.answers.normalisation import exact_form
from ulorl.config.reward_config import AnswerConfig, NumericRewardConfig, Place
from ulorl.rewards.reward import Reward, Verdict
from ulorl.rewards.sandbox import SECONDS, shared_sandbox
from ulorl.types import Problem

MAX_CHARACTERS = 4000  # of an answer; a longer one is wrong, whatever it may be equal to


class RuleReward(Reward):
    """Extracts the answer and compares it with `problem.answer`. An output without an answer is wrong."""

    find: Sequence[Place] = PROSE  # where `reward.answer.find` names nothing
    reasons = ("another text than the reference", "the same text as the reference")  # of 0 and of 1

    def __init__(self, settings: AnswerConfig | None = None, timeout: float = SECONDS) -> None:
        self._settings, self._timeout = settings or AnswerConfig(), timeout

    def __call__(self, problem: Problem, text: str) -> Verdict:
        found = locate(text, self._settings, self.find)
        if found is None:
            return Verdict(0.0, None, reason=f"no answer found in {', '.join(self._settings.find or self.find)}")
        if len(found.answer) > MAX_CHARACTERS:
            return Verdict(0.0, found.answer, found.place, f"too long: more than {MAX_CHARACTERS} characters")
        score = self.score(problem, found)
        return Verdict(score, "" if found.whole else found.answer, found.place, self.reasons[score == 1.0])

    @abstractmethod
    def score(self, problem: Problem, found: Found) -> float:
        """1.0 when the answer is right, else 0.0."""


class MathReward(RuleReward):
    """Equal mathematically, as math-verify says; it does not look at units. One that takes more than 4 seconds of CPU
    time to compare is wrong. Works from any thread.

    timeout: seconds by the clock, after which a judge that does not answer has failed.
    """

    find = MATH
    reasons = ("not shown equal by math-verify", "equal by math-verify")

    def score(self, problem: Problem, found: Found) -> float:
        compare = shared_sandbox("math", self._timeout).score
        sides = {"reference": problem.answer, "answer": found.answer, "question": problem.prompt}
        return compare(**sides, prose=found.prose, whole=found.whole)


class NumericReward(RuleReward):
    """The same number with unit, as `quantity.equal`."""

    find = NUMERIC
    reasons = ("not the same number with unit", "the same number with unit, within the tolerance")

    def __init__(self, settings: NumericRewardConfig) -> None:
        super().__init__(settings.answer, settings.timeout)
        self._tolerance = {
            "relative": settings.tolerance,
            "absolute": settings.absolute_tolerance,
            "strict": settings.units == "strict",
        }

    def score(self, problem: Problem, found: Found) -> float:
        compare = shared_sandbox("numeric", self._timeout).score
        return compare(reference=problem.answer, answer=found.answer, **self._tolerance)


class ExactReward(RuleReward):
    """The same text, in the `exact_form` of both."""

    def score(self, problem: Problem, found: Found) -> float:
        return float(exact_form(found.answer) == exact_form(problem.answer))


class ChoiceReward(RuleReward):
    """The same options chosen, as `choice.chosen` reads them. Where the phrase or the last line chooses none, the last
    sentence that does is taken, unless `reward.answer.find` names the places. A reference that names none is compared
    as text."""

    def __call__(self, problem: Problem, text: str) -> Verdict:
        options, found = options_of(problem), locate(text, self._settings, self.find)
        reference = chosen(problem.answer, options)
        if self._settings.find or not (found and found.prose and reference) or len(found.answer) > MAX_CHARACTERS:
            return super().__call__(problem, text)
        if chosen(found.answer, options):
            return super().__call__(problem, text)
        stated = stated_in(after_thinking(text, self._settings) or "")
        return Verdict(float(reference == stated[1]), stated[0]) if stated else Verdict(0.0, found.answer)

    reasons = ("other options chosen than the reference's, or none", "the same options chosen")

    def score(self, problem: Problem, found: Found) -> float:
        options = options_of(problem)
        reference, answer = chosen(problem.answer, options), chosen(found.answer, options)
        if reference is None:
            return float(exact_form(found.answer) == exact_form(problem.answer))
        return float(reference == answer)


class RulesVerdict(Enum):
    """What rules say of an extracted answer."""

    EQUAL = "equal"  # the same text; the same quantity where both name a unit; else math-verify
    DIFFERENT = "different"  # plain numbers in like units that differ
    OPEN = "open"  # neither: another form, or another value

    def __bool__(self) -> bool:
        return self is RulesVerdict.EQUAL


def compare_by_rules(reference: str, answer: str, timeout: float = SECONDS) -> RulesVerdict:
    """Raises RewardError when the judge fails; where it uses up its time, that is open."""
    if exact_form(reference) == exact_form(answer):
        return RulesVerdict.EQUAL
    if max(len(reference), len(answer)) > MAX_CHARACTERS:
        return RulesVerdict.OPEN
    said = shared_sandbox("rules", timeout).score(reference=reference, answer=answer)
    return {1.0: RulesVerdict.EQUAL, -1.0: RulesVerdict.DIFFERENT}.get(said, RulesVerdict.OPEN)


def equal_by_rules(reference: str, answer: str, timeout: float = SECONDS) -> bool:
    """Whether rules call an extracted answer equal to the reference. Raises RewardError as `by_rules`."""
    return compare_by_rules(reference, answer, timeout) is RulesVerdict.EQUAL
