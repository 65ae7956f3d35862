"""Walks through a maze, against a grid worked out by hand.

0 1 2
3 # #
6 7 8
"""

from __future__ import annotations

import random

import pytest

from refusals import refused
from ulorl.data.maze import Maze
from ulorl.error_codes import ErrorCode

TASK, PROBLEM = Maze(), "3:0>8#4,5"
SHORTEST = "0D3D6R7R8"


@pytest.mark.parametrize("output", [SHORTEST, "0R1R2L1L0D3D6R7R8", "0D3U0D3D6R7L6R7R8", "0D3D6R7R8L7R8"])
def test_any_walk_to_the_goal_is_right(output: str) -> None:
    assert TASK.check(PROBLEM, output)


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ("", "empty"),
        ("0", "no step"),
        ("8", "begins at the goal"),
        ("0D3D6R7", "ends before the goal"),
        ("0D3D6R7R8L7", "leaves the goal"),
        ("3D6R7R8", "begins elsewhere"),
        ("0R1D4D7R8", "enters a wall"),
        ("0R1R2R3D6R7R8", "leaves the grid to the right"),
        ("0U-3", "leaves the grid at the top"),
        ("0D3D6R8", "jumps over a cell"),
        ("0R3D6R7R8", "the direction is another"),
        ("0D3D6R7R08", "a leading zero"),
        ("0D3D6R7R8\n", "a newline"),
        ("0D3 D6R7R8", "a space"),
        ("0D3D6R7R٨", "a digit of another script"),
    ],
)
def test_anything_else_is_wrong(output: str, why: str) -> None:
    assert not TASK.check(PROBLEM, output), why


def test_demonstrations_are_the_depth_first_explorations() -> None:
    """From 0 the walker goes down and straight to the goal, or right into the dead end 1, 2 and back again."""
    outputs = {TASK.demonstrate(PROBLEM, random.Random(seed)) for seed in range(50)}
    assert outputs == {SHORTEST, "0R1R2L1L0D3D6R7R8"}


def test_the_goal_can_always_be_reached() -> None:
    rng = random.Random(0)
    for problem in TASK.training_problems(100, rng, side=4, walls=9):
        assert TASK.check(problem, TASK.demonstrate(problem, rng))
    assert all(problem.endswith("#") for problem in TASK.training_problems(5, rng, side=2, walls=0))


@pytest.mark.parametrize("problem", ["", "3:0>8", "1:0>0#", "3:0>8#4,", "0>8#4,5"])
def test_a_malformed_problem_is_refused(problem: str) -> None:
    with refused(ErrorCode.REWARD_PROBLEM):
        TASK.check(problem, SHORTEST)
