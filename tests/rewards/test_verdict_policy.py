"""What a generative verifier decides without a model, and its counts: no threads, no model, no files."""

from __future__ import annotations

import pytest

from ulorl.answers.extraction import locate
from ulorl.rewards.reward import Verdict
from ulorl.rewards.rules import RulesVerdict
from ulorl.rewards.verdict_policy import PairVerdict, Refusal, RulesFirst, Tally, refuse

EQUAL, DIFFERENT, OPEN = RulesVerdict.EQUAL, RulesVerdict.DIFFERENT, RulesVerdict.OPEN


@pytest.mark.parametrize(
    ("policy", "rules", "expected"),
    [
        (RulesFirst(), EQUAL, None), (RulesFirst(), DIFFERENT, None), (RulesFirst(), OPEN, None),
        (RulesFirst(accept=True), EQUAL, True), (RulesFirst(accept=True), DIFFERENT, None),
        (RulesFirst(refuse=True), EQUAL, None), (RulesFirst(refuse=True), DIFFERENT, False),
        (RulesFirst(accept=True, refuse=True), EQUAL, True), (RulesFirst(accept=True, refuse=True), DIFFERENT, False),
        (RulesFirst(accept=True, refuse=True), OPEN, None),
        (RulesFirst(accept=True, refuse=True), None, None),  # the rules failed: the model decides
    ],
)  # fmt: skip
def test_which_verdicts_of_the_rules_need_no_model(
    policy: RulesFirst, rules: RulesVerdict | None, expected: bool | None
) -> None:
    found = policy.decide(rules)
    assert found == (None if expected is None else PairVerdict(expected, by_model=False))


@pytest.mark.parametrize(
    ("equivalent", "by_model", "reason"),
    [
        (True, True, "the verifier said yes"), (False, True, "the verifier said no"),
        (True, False, "accepted by the rules"), (False, False, "refused by the rules: plain numbers that differ"),
    ],
)  # fmt: skip
def test_reasons(equivalent: bool, by_model: bool, reason: str) -> None:
    assert PairVerdict(equivalent, by_model=by_model).reason == reason


def test_answers_that_no_verifier_is_asked_about() -> None:
    """At most 10 characters, or twice the reference."""

    def refused(answer: str, reference: str = "7") -> Refusal | None:
        found = locate(rf"\boxed{{{answer}}}")
        assert found is not None
        return refuse(found, reference, max_chars=10)

    assert refused("12345678901") == Refusal(Verdict(0.0, "12345678901"), too_long=True)
    assert refused("1234567890") is None
    assert refused("12345678901", reference="123456") is None  # 11 of 12 characters
    assert refused("</s>") == Refusal(Verdict(0.0, None))  # nothing that a prompt may hold
    assert refused("7") is None


def test_counts_add_up() -> None:
    """One pair by the rules, one refused by them, one cached, one read at the second output, one never."""
    tally = Tally(pairs=5)
    tally.count_decided_by_rules(PairVerdict(True, by_model=False))
    tally.count_decided_by_rules(PairVerdict(False, by_model=False))
    tally.cached += 1
    tally.count_agreement(EQUAL, True)
    tally.count_output(None, 1.0)
    tally.count_output(False, 3.0)
    tally.count_agreement(OPEN, False)  # the rules do not accept it either
    tally.count_failure()
    tally.unscored += 1
    tally.count_agreement(None, True)  # the rules failed: nothing to compare
    metrics = tally.metrics()
    assert metrics == {
        "verifier/pairs": 5, "verifier/repeated": 0, "verifier/accepted_by_rules": 1, "verifier/refused_by_rules": 1,
        "verifier/cache_hits": 1, "verifier/judged": 1, "verifier/unscored": 1, "verifier/asked": 3,
        "verifier/unreadable_rate": 0.5, "verifier/failures": 1, "verifier/agreement_with_rules": 1.0,
        "verifier/latency_mean": 2.0, "verifier/latency_p95": pytest.approx(2.9),
    }  # fmt: skip
    assert tally.pairs == tally.repeated + tally.by_rules + tally.refused + tally.cached + tally.judged + tally.unscored
    assert tally.asked == tally.judged + tally.unreadable + tally.failed


def test_means_over_nothing_are_none() -> None:
    assert set(Tally().metrics().values()) == {0, None}
