"""Rewards by rules: mathematics, numbers with units, the same text, multiple choice.

docs/rewards.md says which reward goes with which data.
"""

from __future__ import annotations

from abc import abstractmethod
from enum import Enum

from ulorl.answers.choices import chosen_letters, problem_options, stated_choice
from ulorl.answers.extraction import MATH, NUMERIC, Found, after_thinking
from ulorl.answers.normalisation import exact_form
from ulorl.clients.daemon_pool import DaemonPool
from ulorl.config.reward_config import AnswerConfig
from ulorl.rewards.answer_reward import AnswerReward
from ulorl.rewards.reward import RewardError, Verdict
from ulorl.rewards.sandbox import SECONDS, shared_sandbox
from ulorl.types import Problem

MAX_CHARACTERS = 4000  # of an answer; a longer one is wrong, even where it is equal


class RuleReward(AnswerReward):
    """Extracts the answer and compares it with `problem.answer`."""

    reasons = ("another text than the reference", "the same text as the reference")  # of 0 and of 1

    def __call__(self, problem: Problem, text: str) -> Verdict:
        """Judge one output. Raises RewardError as `score`."""
        found = self.locate(text)
        if found is None:
            return self.without_answer()
        if len(found.answer) > MAX_CHARACTERS:
            return Verdict(0.0, found.answer, found.place, f"too long: more than {MAX_CHARACTERS} characters")
        score = self.score(problem, found)
        return Verdict(score, "" if found.whole else found.answer, found.place, self.reasons[score == 1.0])

    @abstractmethod
    def score(self, problem: Problem, found: Found) -> float:
        """Return 1.0 when the answer is right, else 0.0. Raises RewardError when a process of its own fails."""


class SandboxedRuleReward(RuleReward):
    """Compares in processes of its own, from `submit` on."""

    def __init__(self, answer: AnswerConfig | None = None, timeout: float = SECONDS, workers: int = 1) -> None:
        """answer: where the answer is looked for. timeout: seconds by the clock that judging one answer may take; then
        RewardError is raised. workers: processes."""
        super().__init__(answer)
        self._timeout, self._workers, self.threads = timeout, workers, DaemonPool(workers)


class MathReward(SandboxedRuleReward):
    """1.0 when math-verify finds the answer equal to the reference, else 0.0. It does not look at units.

    An answer that takes more than 4 seconds of CPU time to compare is wrong. Works from any thread.
    """

    places = MATH
    reasons = ("not shown equal by math-verify", "equal by math-verify")

    def score(self, problem: Problem, found: Found) -> float:
        """Return 1.0 when math-verify finds both equal, else 0.0."""
        compare = shared_sandbox("math", self._timeout, self._workers).score
        sides = {"reference": problem.answer, "answer": found.answer, "question": problem.prompt}
        return compare(**sides, prose=found.prose, whole=found.whole)


class NumericReward(SandboxedRuleReward):
    """1.0 when answer and reference are the same number with unit, as `quantities.equal` says, else 0.0."""

    places = NUMERIC
    reasons = ("not the same number with unit", "the same number with unit, within the tolerance")

    def __init__(
        self,
        answer: AnswerConfig | None = None,
        timeout: float = SECONDS,
        workers: int = 1,
        *,
        relative: float = 0.0,
        absolute: float = 0.0,
        strict: bool = False,
    ) -> None:
        """relative, absolute: the largest difference, relative to the reference and in its unit. strict: whether the
        answer must name the unit of the reference."""
        super().__init__(answer, timeout, workers)
        self._relative, self._absolute, self._strict = relative, absolute, strict

    def score(self, problem: Problem, found: Found) -> float:
        """Return 1.0 when both are the same number with unit, within the tolerance, else 0.0."""
        return shared_sandbox("numeric", self._timeout, self._workers).score(
            reference=problem.answer,
            answer=found.answer,
            relative=self._relative,
            absolute=self._absolute,
            strict=self._strict,
        )

    def explain(self, problem: Problem, text: str, verdict: Verdict) -> str:
        """Return the reason of a verdict, with how reference and answer were read."""
        reason = super().explain(problem, text, verdict)
        if not verdict.answer or len(verdict.answer) > MAX_CHARACTERS:
            return reason
        try:
            read = shared_sandbox("reading", self._timeout).text(
                reference=problem.answer, answer=verdict.answer, strict=self._strict
            )
        except RewardError:
            read = ""
        return f"{reason}: {read}" if read else reason


class ExactReward(RuleReward):
    """1.0 when answer and reference are the same text in `exact_form`, else 0.0."""

    def score(self, problem: Problem, found: Found) -> float:
        """Return 1.0 when both are the same text, else 0.0."""
        return float(exact_form(found.answer) == exact_form(problem.answer))


class ChoiceReward(RuleReward):
    """1.0 when the answer chooses the options of the reference, as `choices.chosen` reads both, else 0.0.

    Where the phrase or the last line chooses none, the last sentence that does counts, unless `reward.answer.find`
    names the places. A reference that names no option is compared as text.
    """

    reasons = ("other options chosen than the reference's, or none", "the same options chosen")

    def check(self, problem: Problem) -> None:
        """Check that the problem's options can be read. Raises UserError."""
        problem_options(problem)

    def __call__(self, problem: Problem, text: str) -> Verdict:
        """Judge one output. Raises UserError when the problem's options cannot be read."""
        options, found = problem_options(problem), self.locate(text)
        reference = chosen_letters(problem.answer, options)
        if self._answer.find or not (found and found.prose and reference) or len(found.answer) > MAX_CHARACTERS:
            return super().__call__(problem, text)
        if chosen_letters(found.answer, options):
            return super().__call__(problem, text)
        stated = stated_choice(after_thinking(text, self._answer) or "")
        return Verdict(float(reference == stated[1]), stated[0]) if stated else Verdict(0.0, found.answer)

    def score(self, problem: Problem, found: Found) -> float:
        """Return 1.0 when both choose the same options, else 0.0."""
        options = problem_options(problem)
        reference, answer = chosen_letters(problem.answer, options), chosen_letters(found.answer, options)
        if reference is None:
            return float(exact_form(found.answer) == exact_form(problem.answer))
        return float(reference == answer)


class RulesVerdict(Enum):
    """The verdict of the rules on an extracted answer."""

    EQUAL = "equal"  # the same text; the same quantity where both name a unit; else math-verify
    DIFFERENT = "different"  # plain numbers in like units that differ
    OPEN = "open"  # neither: another form, or another value

    def __bool__(self) -> bool:
        return self is RulesVerdict.EQUAL


def compare_by_rules(reference: str, answer: str, timeout: float = SECONDS) -> RulesVerdict:
    """Compare an extracted answer with the reference. An answer that uses up its CPU time is OPEN.

    timeout: seconds by the clock. Raises RewardError when the sandbox fails.
    """
    if exact_form(reference) == exact_form(answer):
        return RulesVerdict.EQUAL
    if max(len(reference), len(answer)) > MAX_CHARACTERS:
        return RulesVerdict.OPEN
    said = shared_sandbox("rules", timeout).score(reference=reference, answer=answer)
    return {1.0: RulesVerdict.EQUAL, -1.0: RulesVerdict.DIFFERENT}.get(said, RulesVerdict.OPEN)


def equal_by_rules(reference: str, answer: str, timeout: float = SECONDS) -> bool:
    """Return whether the rules call an extracted answer equal to the reference. Raises RewardError."""
    return compare_by_rules(reference, answer, timeout) is RulesVerdict.EQUAL
