"""Chain countdown: problems, traces and the scorer, against examples worked out by hand."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refusals import refused
from ulorl.data import countdown
from ulorl.error_codes import ErrorCode
from ulorl.types import Problem

TEN = Problem("p", "7,2,7,2>10", "10")
FAILED = "7-2=5+2=7+7=14,10>\n"
# 7 + 7 = 14, 14 - 2 = 12, 12 - 2 = 10: the numbers 7, 7, 2, 2, each once.
ANSWER = "7+7=14-2=12-2=10,10"


@pytest.mark.parametrize("text", [ANSWER, FAILED + ANSWER, "any first line\n" + ANSWER, "2+7=9-7=2*5=10,10\n" + ANSWER])
def test_a_right_last_line_scores_one(text: str) -> None:
    assert countdown.score(TEN, text) == 1.0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        (FAILED, "the last line is empty"),
        (FAILED.strip(), "a failed attempt is no answer"),
        (ANSWER + "\n", "ends on an empty line"),
        (ANSWER + ">", "says the result is above the target"),
        ("7+7=14-2=12-2=1", "cut within the last number"),
        ("7+7=14-2=12-2=10", "cut before the comparison"),
        ("7+7=14-2=12-2=10,", "cut before the target"),
        ("7+7=14-2=12-2=10,1", "cut within the target"),
        ("7+7=14-2=12-2=10,12", "another target"),
        ("7+7=14-2=12-2=9,10", "wrong arithmetic in the last step: 12 - 2 = 10"),
        ("7+7=13-2=12-2=10,10", "wrong arithmetic in the first step: 7 + 7 = 14"),
        ("7+7=14-7=7+2=9,9", "right, but neither the numbers nor the target"),
        ("7-2=5+7=12-2=10-7=3+7=10,10", "7 used three times"),
        ("7+2=9+2=11-7=4,4", "right with the right numbers, but not the target"),
        ("7+7=14-2=12,10", "a 2 is missing"),
        ("2+2=4+7=11-1=10,10", "1 is not given"),
        ("7+7=014-2=12-2=10,10", "leading zero"),
        ("7+7=14-2=12-2=10,010", "leading zero in the target"),
        (" " + ANSWER, "a space"),
        ("7+7=14\r-2=12-2=10,10", "carriage return"),
        (ANSWER.replace("7", "７"), "full-width digits"),
        (ANSWER.replace("-", "−"), "the minus sign of typography"),
        ("٣\u0000\ud800🂡" + ANSWER, "garbage before the answer"),
        ("7" * 100_000, "long garbage"),
        ("7+7=" + "9" * 10_000 + ",10", "longer than Python turns into a number"),
    ],
)
def test_anything_else_scores_zero(text: str, why: str) -> None:
    assert countdown.score(TEN, text) == 0.0, why


def test_values_leave_no_bounds() -> None:
    # 9 * 9 = 81 > 50 and 2 - 9 = -7 < 0: right arithmetic, forbidden values.
    assert countdown.score(Problem("p", "9,9,8>73", "73"), "9*9=81-8=73,73") == 0.0
    assert countdown.score(Problem("p", "2,9,9>2", "2"), "2-9=-7+9=2,2") == 0.0
    assert countdown.score(Problem("p", "7,7,1>50", "50"), "7*7=49+1=50,50") == 1.0


@given(st.text() | st.text("0123456789+-*=,<>\n"))
def test_the_score_never_raises(text: str) -> None:
    assert countdown.score(TEN, text) in (0.0, 1.0)


@settings(deadline=None)  # the first draw lists all problems
@given(st.integers(0, 10_000))
def test_a_trace_always_ends_with_a_right_answer(seed: int) -> None:
    rng = random.Random(seed)
    (prompt,) = countdown.Countdown().training_problems(1, rng)
    problem = Problem("p", prompt)
    trace = countdown.search_trace(problem, rng)
    assert countdown.score(problem, trace) == 1.0
    *failed, _ = trace.split("\n")
    assert all(countdown.score(problem, line) == 0.0 for line in failed)
    assert len(set(failed)) == len(failed), "an attempt is repeated"
    numbers, target = countdown.parse_prompt(problem.prompt)
    for line in failed:
        result, copied = line.rpartition("=")[2].split(",")
        assert copied == f"{target}{'>' if int(result) > target else '<'}"
    assert not countdown.is_held_out(numbers, target)


def test_chains_of_three_numbers_counted_by_hand() -> None:
    # 1,1,2, all orders, values within 0..50. 112: 1+1=2 {+2=4, -2=0, *2=4}, 1-1=0 {+2=2, *2=0; -2 is below 0},
    # 1*1=1 {+2=3, *2=2; 1-2 is below 0}: 7. 121: 1+2=3 {4, 2, 3}, 1*2=2 {3, 1, 2}; 1-2 is below 0: 6.
    # 211: 2+1=3 {4, 2, 3}, 2-1=1 {2, 0, 1}, 2*1=2 {3, 1, 2}: 9.
    found = countdown.chains((1, 1, 2))
    assert len(found) == len({c.text for c in found}) == 7 + 6 + 9
    assert sum(c.value == 4 for c in found) == 2 + 1 + 1


def test_a_problem_without_a_solution_has_no_trace() -> None:
    with refused(ErrorCode.REWARD_PROBLEM):
        countdown.search_trace(Problem("p", "1,1,1>40", "40"), random.Random(0))


def test_problems_are_distinct_deterministic_and_solvable() -> None:
    made = countdown.problems(300, 5)
    assert made == countdown.problems(300, 5)
    assert made != countdown.problems(300, 6)
    assert len({p.id for p in made}) == len({p.prompt for p in made}) == 300
    for problem in made:
        numbers, target = countdown.parse_prompt(problem.prompt)
        assert target >= countdown.SMALLEST_TARGET
        assert problem.answer == str(target)
        assert any(chain.value == target for chain in countdown.chains(tuple(sorted(numbers))))
    four = sum(p.prompt.count(",") == 3 for p in made)
    assert 110 <= four <= 190  # half of 300, give or take 4.5 standard deviations


def test_training_and_held_out_problems_never_overlap() -> None:
    def distinct(held_out: bool) -> set[tuple[tuple[int, ...], int]]:
        parsed = [countdown.parse_prompt(p.prompt) for p in countdown.problems(4000, 0, held_out=held_out)]
        return {(tuple(sorted(numbers)), target) for numbers, target in parsed}

    assert not distinct(True) & distinct(False)


def test_the_split_is_the_same_on_every_machine() -> None:
    # The numbers are sorted first: sha256("2,2,7,7>10") begins with 7b40, 0x7b40 / 2^16 = 0.48, training;
    # sha256("2,3,4>14") begins with 24b4, 0.14, below the held-out share of 0.2.
    assert not countdown.is_held_out((7, 2, 7, 2), 10)
    assert countdown.is_held_out((4, 3, 2), 14)


def test_the_count_of_numbers_is_a_setting() -> None:
    assert {p.prompt.count(",") for p in countdown.problems(50, 0, numbers=[3])} == {2}
    assert {p.prompt.count(",") for p in countdown.problems(50, 0, numbers=[4])} == {3}


@pytest.mark.parametrize(
    ("size", "options", "code", "key"),
    [
        (1, {"digits": 3}, ErrorCode.DATA_GENERATOR, "data.settings.digits"),
        (1, {"numbers": [5]}, ErrorCode.DATA_GENERATOR, "data.settings.numbers"),
        (1, {"numbers": 3}, ErrorCode.DATA_GENERATOR, "data.settings.numbers"),
        (1, {"numbers": []}, ErrorCode.DATA_GENERATOR, "data.settings.numbers"),
        (-1, {}, ErrorCode.DATA_TOO_FEW, "data.size"),
        (10**6, {}, ErrorCode.DATA_TOO_FEW, "data.size"),
    ],
)
def test_wrong_settings_are_refused(size: int, options: dict[str, object], code: ErrorCode, key: str) -> None:
    with refused(code, key=key):
        countdown.problems(size, 0, **options)


@pytest.mark.parametrize("prompt", ["", "7,2>", "7>10", "0,2,3>10", "7,2,7,2>1000", "7,2,7>10\n\n", "7;2;7>10"])
def test_a_malformed_problem_is_refused(prompt: str) -> None:
    with refused(ErrorCode.REWARD_PROBLEM):
        countdown.score(Problem("p", prompt, "10"), ANSWER)
