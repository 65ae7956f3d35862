"""Figures of verifiers and their confidence intervals, against hand arithmetic and simulation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ulorl.rewards.rules import Ruled
from ulorl.verifier.bench import PAPER, Verdicts, bench, of_rules, remembered, rules_first, score
from ulorl.verifier.intervals import Interval, mean_of, rate, wilson
from ulorl.verifier.pairs import Pair
from ulorl.verifier.picture import draw
from ulorl.verifier.table import as_json, markdown

YES = Pair("q", "27cm", "0.27m", True, "units", "", "gsm8k", "1")
NO = Pair("q", "27cm", "2.7m", False, "units", "digits", "gsm8k", "1")


def several(count: int, pair: Pair) -> list[Pair]:
    return [replace(pair, question=f"{pair.question} {pair.equivalent}{i}") for i in range(count)]


def test_errors_and_rates_by_hand() -> None:
    """4 equivalent: yes, yes, no, unscored. 6 others: 5 no, 1 yes. Accepted 2/4, refused 5/6, accuracy 7/10, balanced
    (1/2 + 5/6) / 2 = 2/3."""
    found = score(several(4, YES) + several(6, NO), [True, True, False, None, *[False] * 5, True])
    assert (found.pairs, found.problems, found.equivalent) == (10, 10, 4)
    assert (found.false_positives, found.false_negatives, found.unscored) == (1, 1, 1)
    rates = (found.accepted, found.refused, found.accuracy, found.balanced)
    assert [rate.value for rate in rates if rate] == pytest.approx([2 / 4, 5 / 6, 7 / 10, 2 / 3])


def test_wilson_by_the_textbook() -> None:
    """8 of 10: centre (0.8 + z²/20) / (1 + z²/10), z² = 3.8415: 0.99207 / 1.38415 = 0.71674; half-width 1.95996 x
    sqrt(0.8 x 0.2 / 10 + 3.8415 / 400) / 1.38415 = 1.95996 x 0.16002 / 1.38415 = 0.22659."""
    found = wilson(0.8, 10)
    assert (found.low, found.high) == pytest.approx((0.49016, 0.94332), abs=2e-5)
    none = wilson(0.0, 20)  # upper limit z² / (n + z²)
    assert (none.low, none.high) == pytest.approx((0, 3.841459 / 23.841459))


def test_copies_within_problems_tell_nothing_new() -> None:
    """K problems of m equal verdicts each: the ratio estimator's variance is p (1 - p) / (K - 1), so K - 1 pairs are
    effective, whatever m is."""
    hits = [True] * 7 + [False] * 3
    for copies in (1, 2, 5):
        found = rate(hits * copies, list(range(10)) * copies)
        assert found
        assert (found.low, found.high) == pytest.approx((wilson(0.7, 9).low, wilson(0.7, 9).high))


def test_without_errors_the_problems_count() -> None:
    assert rate([True] * 30, ["a", "b", "c"] * 10) == wilson(1.0, 3)


def test_a_problem_half_right_everywhere_is_no_less_than_its_pairs() -> None:
    """Each problem has one hit and one miss: no variance between problems, but no more than n pairs are effective."""
    assert rate([True, False] * 8, [i // 2 for i in range(16)]) == wilson(0.5, 16)


def test_limits_of_a_mean_by_hand() -> None:
    """0.9 (0.7 to 0.95) and 0.6 (0.45 to 0.72): low 0.75 - sqrt(0.2² + 0.15²) / 2 = 0.75 - 0.125; high 0.75 +
    sqrt(0.05² + 0.12²) / 2 = 0.75 + 0.065."""
    found = mean_of(Interval(0.9, 0.7, 0.95), Interval(0.6, 0.45, 0.72))
    assert found
    assert (found.value, found.low, found.high) == pytest.approx((0.75, 0.625, 0.815))
    assert mean_of(None, Interval(0.6, 0.4, 0.7)) is None


def test_intervals_cover_what_they_say() -> None:
    """500 draws of 60 problems with 1 to 6 pairs each, whose own rates vary (beta): about 95% hold the true balanced
    accuracy. Intervals that took the pairs for independent would hold it in 85%."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(500):
        intervals = []
        for a, b in ((1.6, 0.4), (1.2, 0.8)):  # means 0.8 and 0.6
            sizes = rng.integers(1, 7, 60)
            hits = rng.random(sizes.sum()) < np.repeat(rng.beta(a, b, 60), sizes)
            intervals.append(rate(hits.tolist(), np.repeat(np.arange(60), sizes).tolist()))
        found = mean_of(*intervals)
        assert found
        covered += found.low <= 0.7 <= found.high
    assert 0.925 <= covered / 500 <= 0.975


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1))
def test_an_interval_holds_its_rate_within_0_and_1(drawn: list[tuple[bool, int]]) -> None:
    hits, problems = zip(*drawn, strict=True)
    found = rate(hits, problems)
    assert found
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.value == pytest.approx(sum(hits) / len(hits))
    assert not math.isclose(found.low, found.high)


def test_pairs_without_a_problem_are_told_apart_by_their_question() -> None:
    alone = [replace(YES, problem="", question=str(i)) for i in range(5)]
    assert score(alone, [True] * 5).problems == 5


def says(*yes: str) -> object:
    """A judge that accepts these answers, and counts how often it is asked."""

    def judge(pairs: Sequence[Pair]) -> Verdicts:
        judge.asked += 1  # type: ignore[attr-defined]
        return [pair.answer in yes for pair in pairs]

    judge.asked = 0  # type: ignore[attr-defined]
    return judge


def test_rules_first_asks_the_model_about_what_rules_refuse_and_each_judge_once() -> None:
    asked = list[int]()

    def equal_to_a(pairs: Sequence[Pair]) -> list[Ruled | None]:
        asked.append(len(pairs))
        return [Ruled.EQUAL if pair.answer == "a" else Ruled.OPEN for pair in pairs]

    rules, model = remembered(equal_to_a), says("b")
    of_model = remembered(model)  # type: ignore[arg-type]
    judges = {"rules": of_rules(rules), "model": of_model, "both": rules_first(rules, of_model)}
    some = [replace(YES, answer=answer) for answer in "abc"]
    result = bench(some, judges)
    assert (len(asked), model.asked) == (1, 1)  # type: ignore[attr-defined]
    accepted = {name: found.accepted.value for name, found in result.total.items() if found.accepted}
    assert accepted == pytest.approx({"rules": 1 / 3, "model": 1 / 3, "both": 2 / 3})


def test_rules_first_takes_no_verdict_of_the_model_for_a_no() -> None:
    def rules(_: Sequence[Pair]) -> list[Ruled | None]:
        return [Ruled.EQUAL, Ruled.OPEN, None, Ruled.DIFFERENT]

    def model(_: Sequence[Pair]) -> Verdicts:
        return [None, None, True, True]

    assert rules_first(rules, model)([]) == [True, None, True, True]
    assert rules_first(rules, model, refuse=True)([]) == [True, None, True, False]
    assert of_rules(rules)([]) == [True, False, None, False]


def test_groups_and_the_papers_examples() -> None:
    words = replace(YES, kind="words", source="math", answer="x")
    result = bench([YES, NO, words], {"judge": says("0.27m", "2.7m", "one half")})  # type: ignore[dict-item]
    assert result.by_kind["units"]["judge"].false_positives == 1
    assert result.by_kind["words"]["judge"].false_negatives == 1
    assert result.by_source["gsm8k"]["judge"].pairs == 2
    assert [(p.reference, p.answer, p.equivalent) for p, _ in result.paper[:2]] == [
        ("27cm", "0.27m", True),
        (r"\frac{1}{2}", "one half", True),
    ]
    assert [verdicts["judge"] for _, verdicts in result.paper] == [True, True, True, False]
    assert result.total["judge"].pairs == 3  # the examples are no pairs of the benchmark
    assert result.false_positives["judge"] == [NO]
    assert result.false_negatives["judge"] == [words]


def test_tables_picture_and_json_hold_the_figures(tmp_path: Path) -> None:
    only_yes = several(3, replace(YES, kind="all yes"))
    result = bench([*several(8, YES), *several(8, NO), *only_yes], {"judge": says("0.27m")})  # type: ignore[dict-item]
    text = markdown(result)
    assert "| judge | 100.0% (80.6% to 100.0%) | 100.0% (" in text  # 16 problems: 16 / (16 + z²)
    assert "| all yes | 3 (3) | 100.0% (43.9% to 100.0%)* 0+0 |" in text  # 3 / (3 + z²) = 0.4385
    assert "| 27cm | 2.7m | no | no |" in text
    assert as_json(result)["by_kind"]["units"]["judge"]["balanced"]["value"] == 1.0
    assert len(as_json(result)["paper"]) == len(PAPER)
    draw(result, tmp_path / "a.svg")
    draw(result, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_text() == (tmp_path / "b.svg").read_text()
    assert "all yes (3)" in (tmp_path / "a.svg").read_text()
