"""Every estimator by hand arithmetic."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from ulorl.evaluation.estimators import (
    Lengths,
    is_repetitive,
    length_distribution,
    maj_at_k,
    mean_with_error,
    pass_at_k,
    repeated_share,
)
from ulorl.evaluation.summary import Answer, cut_at, summarise


def test_mean_with_error() -> None:
    """1, 1/2, 0: mean 1/2, s = sqrt((1/4 + 0 + 1/4) / 2) = 1/2, s / sqrt(3) = 0.288675."""
    assert mean_with_error([1.0, 0.5, 0.0]) == pytest.approx((0.5, 0.28867513))
    assert all(map(math.isnan, mean_with_error([])))
    assert math.isnan(mean_with_error([1.0])[1])


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (4, 1, 1, 1 / 4),
        (4, 1, 2, 1 - 3 / 6),  # C(3, 2) / C(4, 2)
        (4, 2, 2, 1 - 1 / 6),  # C(2, 2) / C(4, 2)
        (4, 3, 2, 1.0),  # one wrong answer cannot fill two draws
        (4, 0, 4, 0.0),
        (32, 1, 8, 8 / 32),  # one right answer is among 8 of 32
    ],
)
def test_pass_at_k(n: int, c: int, k: int, expected: float) -> None:
    assert pass_at_k(n, c, k) == pytest.approx(expected)


def test_pass_at_k_is_the_share_of_all_draws_with_a_right_answer() -> None:
    for n in range(1, 7):
        for c in range(n + 1):
            for k in range(1, n + 1):
                draws = list(combinations(range(n), k))  # answers 0..c-1 are right
                assert pass_at_k(n, c, k) == pytest.approx(sum(min(draw) < c for draw in draws) / len(draws))


@pytest.mark.parametrize(("n", "c", "k"), [(2, 1, 3), (2, 3, 1), (2, -1, 1), (2, 1, 0)])
def test_pass_at_k_refuses_impossible_counts(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="needs at least"):
        pass_at_k(n, c, k)


@pytest.mark.parametrize(
    ("votes", "right", "expected"),
    [
        (["7", "7", "8"], [1, 1, 0], 1.0),
        (["7", "8", "8"], [1, 0, 0], 0.0),
        (["7", "8", "9"], [1, 0, 0], 1 / 3),  # three answers are the most frequent, one is right
        (["1/2", "0.5", "3", "3"], [1, 1, 0, 0], 1 / 2),  # the right ones are one answer
        (["1/2", "0.5", "50%", "3", "3"], [1, 1, 1, 0, 0], 1.0),
        ([None, None, "7"], [0, 0, 1], 1.0),  # an output without an answer does not vote
        ([None, None], [0, 0], 0.0),
    ],
)
def test_maj_at_k(votes: list[str | None], right: list[int], expected: float) -> None:
    assert maj_at_k(votes, [bool(one) for one in right]) == pytest.approx(expected)


def test_length_distribution() -> None:
    """Of 1 to 100, 50 lengths are at most 50, 90 at most 90, 99 at most 99."""
    assert length_distribution(list(range(100, 0, -1))) == Lengths(50.5, 50, 90, 99)
    assert length_distribution([3]) == Lengths(3.0, 3, 3, 3)


def test_repetition() -> None:
    """5 tokens 20 times are 81 windows of 20, of which 5 are distinct: 76 / 81 occurred before. 100 distinct tokens
    and then these 100: 181 windows; those of the first 100 (81) and those that cross (19) are distinct, and 5 of the
    loop: 76 / 181 occurred before, less than half."""
    loop = np.tile(np.arange(5, dtype=np.int32), 20)
    plain = np.arange(100, 200, dtype=np.int32)
    assert repeated_share(loop) == pytest.approx(76 / 81)
    assert repeated_share(plain) == 0
    assert repeated_share(np.concatenate([plain, loop])) == pytest.approx(76 / 181)
    assert repeated_share(loop[:20]) == 0  # one window
    assert is_repetitive(loop)
    assert not is_repetitive(np.concatenate([plain, loop]))
    assert is_repetitive(np.concatenate([plain, loop, loop, loop]))


def answer(length: int, reward: float | None, said: str | None = "", *, truncated: bool = False) -> Answer:
    return Answer(np.arange(length, dtype=np.int32), truncated, reward, said)


ANSWERS = [
    answer(4, 1.0, "1/2"), answer(9, 1.0, "0.5"), answer(2, 0.0, "3"), answer(12, 0.0, "", truncated=True),
    answer(3, 0.0, None), answer(5, 0.0, "4"), answer(6, 0.0, "4"), answer(7, 1.0, "2"),
    answer(1, None), answer(1, None), answer(1, None), answer(1, None),
]  # fmt: skip


def test_summary_by_hand() -> None:
    """Problem 1: 2 of 4 right; pass@2 = 1 - C(2, 2) / C(4, 2) = 5/6; two right answers against one 3: maj 1.
    Problem 2: 1 of 4 right; pass@2 = 1 - C(3, 2) / 6 = 1/2; two of 4 against one 2: maj 0.
    Problem 3 has no scored answer and counts in lengths only. Mean length (27 + 21 + 4) / 12."""
    found = summarise(ANSWERS, 4)
    assert found.by_problem == (0.5, 0.25, None)
    assert (found.accuracy, found.stderr) == pytest.approx((0.375, 0.125))  # |0.5 - 0.25| / 2
    assert found.pass_at == pytest.approx({1: 0.375, 2: (5 / 6 + 1 / 2) / 2, 4: 1.0})
    assert found.majority == 0.5
    assert found.lengths == Lengths(52 / 12, 3, 9, 12)  # sorted: 1 1 1 1 2 3 4 5 6 7 9 12
    assert (found.truncated, found.no_answer, found.unscored) == (pytest.approx(1 / 12), 1, 4)
    assert found.repetitive == 0
    assert found.interval is not None
    assert found.interval.value == 0.375


def test_a_lower_limit_cuts_the_same_outputs() -> None:
    """At 6 tokens, the right answers of 9 and of 7 tokens are cut and wrong; those of 6 and fewer stay."""
    found = summarise([cut_at(one, 6) for one in ANSWERS], 4)
    assert found.by_problem == (0.25, 0.0, None)
    assert found.truncated == pytest.approx(3 / 12)
    assert found.lengths.p99 == 6
    assert cut_at(ANSWERS[0], 4) is ANSWERS[0]  # EOS exactly at the limit is complete


def test_no_majority_where_the_reward_does_not_say_what_it_judged() -> None:
    found = summarise([answer(1, 1.0), answer(2, 0.0)], 2)
    assert found.majority is None
    assert found.pass_at == {1: 0.5, 2: 1.0}


def test_no_problem_leaves_the_majority_because_an_answer_is_not_named() -> None:
    """Problem 1: the right answer 2 against three wrong ones that are not named: maj 0, where it used to be left out.
    Problem 2: two right ones, of which one is not named, against a named and an unnamed wrong one: maj 1.
    Problem 3: a right one, a wrong one, an output without an answer and one that was cut: a tie, maj 1/2."""
    found = summarise(
        [
            answer(1, 1.0, "2"), answer(1, 0.0), answer(1, 0.0), answer(1, 0.0),
            answer(1, 1.0, "2"), answer(1, 1.0), answer(1, 0.0, "3"), answer(1, 0.0),
            answer(1, 1.0, "2"), answer(1, 0.0), answer(1, 0.0, None), answer(1, 0.0, truncated=True),
        ], 4,
    )  # fmt: skip
    assert found.majority == pytest.approx((0 + 1 + 1 / 2) / 3)
    assert found.by_problem == (0.25, 0.5, 0.25)


def test_pass_at_k_up_to_a_k_that_is_no_power_of_two() -> None:
    assert list(summarise([answer(1, 1.0)] * 6, 6).pass_at) == [1, 2, 4, 6]
