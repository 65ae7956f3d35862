"""Sorting by adjacent swaps, against lists worked out by hand."""

from __future__ import annotations

import random

import pytest

from ulorl.data.sorting import Sorting

TASK = Sorting()


@pytest.mark.parametrize("output", ["1,3,2\n1,2,3", "3,2,1\n2,3,1\n2,1,3\n1,2,3", "1,3,2\n3,1,2\n1,3,2\n1,2,3"])
def test_any_order_of_swaps_is_right(output: str) -> None:
    assert TASK.check("3,1,2", output)


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ("", "no line"),
        ("3,1,2", "no swap"),
        ("1,2,3", "two swaps at once"),
        ("1,3,2", "not sorted at the end"),
        ("1,3,2\n1,2,3\n", "an empty line"),
        ("1,3,2\n1,3,2\n1,2,3", "a line without a swap"),
        ("2,1,3\n1,2,3", "a swap of the ends"),
        ("1,3,2\n1,2", "a number is missing"),
        ("1,3,2\n1,2,4", "another number"),
        ("1,3,2\n1,2,03", "a leading zero"),
        (" 1,3,2\n1,2,3", "a space"),
        ("1,3,2\r\n1,2,3", "a carriage return"),
    ],
)
def test_anything_else_is_wrong(output: str, why: str) -> None:
    assert not TASK.check("3,1,2", output), why


def test_a_demonstration_has_a_line_for_each_inversion() -> None:
    """4,3,2,1 has 3 + 2 + 1 = 6 inversions; each swap of neighbours removes one, and no demonstration wastes one."""
    outputs = {TASK.demonstrate("4,3,2,1", random.Random(seed)) for seed in range(100)}
    assert all(output.count("\n") + 1 == 6 for output in outputs)
    assert len(outputs) == 16  # the reduced words of the longest permutation of 4 (Stanley 1984)


def test_lengths_are_those_asked_for_and_no_list_is_sorted() -> None:
    problems = TASK.training_problems(300, random.Random(0), numbers=[2, 5])
    assert {len(problem.split(",")) for problem in problems} == {2, 5}
    assert all((values := list(map(int, p.split(",")))) != sorted(values) for p in problems)
