"""Decides what a generative verifier needs no model for, and counts verdicts: pure, without threads and files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ulorl.answers.extraction import Found
from ulorl.rewards.reward import Verdict
from ulorl.rewards.rules import RulesVerdict
from ulorl.rewards.verdict_prompt import plain
from ulorl.types import Metrics


class AnswerPair(NamedTuple):
    """A predicted answer and the reference that it is compared with."""

    question: str
    reference: str
    answer: str  # predicted


@dataclass(frozen=True)
class PairVerdict:
    """Whether a pair is equivalent, and what decided it."""

    equivalent: bool
    by_model: bool  # now, or earlier and kept in the cache; else by the rules

    @property
    def reason(self) -> str:
        """The verdict in words."""
        if self.by_model:
            return f"the verifier said {'yes' if self.equivalent else 'no'}"
        return "accepted by the rules" if self.equivalent else "refused by the rules: plain numbers that differ"


@dataclass(frozen=True)
class RulesFirst:
    """Which verdicts of the rules count before a model is asked.

    accept: what the rules call equal is equivalent. refuse: plain numbers in like units that differ are not.
    """

    accept: bool = False
    refuse: bool = False

    def decide(self, rules: RulesVerdict | None) -> PairVerdict | None:
        """Return the verdict that the rules alone give, None when the model decides. rules: None when they failed."""
        if self.accept and rules is RulesVerdict.EQUAL:
            return PairVerdict(True, by_model=False)
        if self.refuse and rules is RulesVerdict.DIFFERENT:
            return PairVerdict(False, by_model=False)
        return None


class Refusal(NamedTuple):
    """A verdict on an output whose answer no verifier is asked about."""

    verdict: Verdict
    too_long: bool = False


def refuse(found: Found, reference: str, *, max_chars: int) -> Refusal | None:
    """Return the verdict on an answer that is too long, or that holds nothing but what a prompt may not hold. None for
    any other answer: the verifier decides.

    max_chars: of an answer, unless twice the reference is longer.
    """
    longest = max(max_chars, 2 * len(reference))
    if len(found.answer) > longest:
        reason = f"too long: more than {longest} characters"
        return Refusal(Verdict(0.0, found.answer, found.place, reason), too_long=True)
    if not plain(found.answer):  # after the length: `plain` takes quadratic time for nested tags
        return Refusal(Verdict(0.0, None, reason=f"nothing in {found.place} but what a prompt may not hold"))
    return None


@dataclass
class Tally:
    """Counts of pairs and outputs.

    pairs = repeated + by_rules + refused + cached + judged + unscored, and asked = judged + unreadable + failed.
    """

    pairs: int = 0
    repeated: int = 0  # equal to one that was being judged: it got the same verdict, or none
    by_rules: int = 0  # accepted by the rules, with rules_first
    refused: int = 0  # by the rules, with rules_refuse
    cached: int = 0
    judged: int = 0  # by an output of the model
    unscored: int = 0  # without a verdict
    asked: int = 0  # outputs
    unreadable: int = 0  # outputs without a verdict
    failed: int = 0  # requests without an output
    compared: int = 0  # pairs that both rules and model judged
    agreed: int = 0
    seconds: list[float] = field(default_factory=list)  # from asking to the output

    def count_decided_by_rules(self, verdict: PairVerdict) -> None:
        """Count a pair that the rules decided alone."""
        self.by_rules += verdict.equivalent
        self.refused += not verdict.equivalent

    def count_output(self, verdict: bool | None, seconds: float) -> None:
        """Count an output of the model; verdict: None when it cannot be read."""
        self.asked += 1
        self.judged += verdict is not None
        self.unreadable += verdict is None
        self.seconds.append(seconds)

    def count_failure(self) -> None:
        """Count a request without an output."""
        self.asked += 1
        self.failed += 1

    def count_agreement(self, rules: RulesVerdict | None, verdict: bool) -> None:
        """Count a pair that the model judged, now or in the cache; rules: None when they failed or were not asked."""
        if rules is not None:
            self.compared += 1
            self.agreed += (rules is RulesVerdict.EQUAL) is verdict

    def metrics(self) -> Metrics:
        """Return the counts by their names in metrics.jsonl. A mean over nothing is None."""
        answered = self.asked - self.failed
        return {
            "verifier/pairs": self.pairs,
            "verifier/repeated": self.repeated,
            "verifier/accepted_by_rules": self.by_rules,
            "verifier/refused_by_rules": self.refused,
            "verifier/cache_hits": self.cached,
            "verifier/judged": self.judged,
            "verifier/unscored": self.unscored,
            "verifier/asked": self.asked,
            "verifier/unreadable_rate": self.unreadable / answered if answered else None,
            "verifier/failures": self.failed,
            "verifier/agreement_with_rules": self.agreed / self.compared if self.compared else None,
            "verifier/latency_mean": float(np.mean(self.seconds)) if self.seconds else None,
            "verifier/latency_p95": float(np.quantile(self.seconds, 0.95)) if self.seconds else None,
        }
