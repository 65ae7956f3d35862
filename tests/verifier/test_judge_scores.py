"""Figures of verifiers and their confidence intervals, against hand arithmetic and simulation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ulorl.rewards.rules import RulesVerdict
from ulorl.verifier.judge_scores import PAPER, measure_judges, score
from ulorl.verifier.judges import Verdicts, of_rules, remembered, rules_first
from ulorl.verifier.pairs import Pair
from ulorl.verifier.score_figure import draw
from ulorl.verifier.score_tables import as_json, markdown

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


def test_pairs_without_a_problem_are_told_apart_by_their_question() -> None:
    alone = [replace(YES, problem="", question=str(i)) for i in range(5)]
    assert score(alone, [True] * 5).problems == 5
    assert (
        score([replace(YES, problem="", question="")] * 5, [True] * 5).problems == 5
    )  # nothing says they belong together


def says(*yes: str) -> object:
    """A judge that accepts these answers, and counts how often it is asked."""

    def judge(pairs: Sequence[Pair]) -> Verdicts:
        judge.asked += 1  # type: ignore[attr-defined]
        return [pair.answer in yes for pair in pairs]

    judge.asked = 0  # type: ignore[attr-defined]
    return judge


def test_rules_first_asks_the_model_about_what_rules_refuse_and_each_judge_once() -> None:
    asked = list[int]()

    def equal_to_a(pairs: Sequence[Pair]) -> list[RulesVerdict | None]:
        asked.append(len(pairs))
        return [RulesVerdict.EQUAL if pair.answer == "a" else RulesVerdict.OPEN for pair in pairs]

    rules, model = remembered(equal_to_a), says("b")
    of_model = remembered(model)  # type: ignore[arg-type]
    judges = {"rules": of_rules(rules), "model": of_model, "both": rules_first(rules, of_model)}
    some = [replace(YES, answer=answer) for answer in "abc"]
    result = measure_judges(some, judges)
    assert (len(asked), model.asked) == (1, 1)  # type: ignore[attr-defined]
    accepted = {name: found.accepted.value for name, found in result.total.items() if found.accepted}
    assert accepted == pytest.approx({"rules": 1 / 3, "model": 1 / 3, "both": 2 / 3})


def test_rules_first_takes_no_verdict_of_the_model_for_a_no() -> None:
    def rules(_: Sequence[Pair]) -> list[RulesVerdict | None]:
        return [RulesVerdict.EQUAL, RulesVerdict.OPEN, None, RulesVerdict.DIFFERENT]

    def model(_: Sequence[Pair]) -> Verdicts:
        return [None, None, True, True]

    assert rules_first(rules, model)([]) == [True, None, True, True]
    assert rules_first(rules, model, refuse=True)([]) == [True, None, True, False]
    assert of_rules(rules)([]) == [True, False, None, False]


def test_groups_and_the_papers_examples() -> None:
    words = replace(YES, kind="words", source="math", answer="x")
    result = measure_judges([YES, NO, words], {"judge": says("0.27m", "2.7m", "one half")})  # type: ignore[dict-item]
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
    result = measure_judges([*several(8, YES), *several(8, NO), *only_yes], {"judge": says("0.27m")})  # type: ignore[dict-item]
    text = markdown(result)
    assert "| judge | 100.0% (79.0% to 100.0%) | 100.0% (" in text  # 3 problems x 2, 13 x 1: n = 19² / 25, n / (n + z²)
    assert "| all yes | 3 (3) | 100.0% (43.9% to 100.0%)* 0+0 |" in text  # 3 / (3 + z²) = 0.4385
    assert "| 27cm | 2.7m | no | no |" in text
    assert as_json(result)["by_kind"]["units"]["judge"]["balanced"]["value"] == 1.0
    assert len(as_json(result)["paper"]) == len(PAPER)
    draw(result, tmp_path / "a.svg")
    draw(result, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_text() == (tmp_path / "b.svg").read_text()
    assert "all yes (3)" in (tmp_path / "a.svg").read_text()
