"""Problems and models that a run cannot train on, found before weights are loaded."""

from __future__ import annotations

import numpy as np
import pytest

import ulorl
from paths import COUNTDOWN
from refusals import refused
from ulorl.error_codes import ErrorCode
from ulorl.training.preflight import load_inputs, without_held_out
from ulorl.types import Problem, Prompted


def prompted(*questions: str) -> list[Prompted]:
    return [(Problem(str(i), question), np.zeros(1, np.int32)) for i, question in enumerate(questions)]


@pytest.mark.parametrize(
    "copy", ["2 + 2 = ? ", "2 + 2 = ?", "2+2=?", "2 + 2 =", "$2 + 2 = ?$", "2 + 2 =\n?", "\\(2 + 2\\) = ?"]
)
def test_a_held_out_question_in_other_typesetting_does_not_train(copy: str) -> None:
    others = ("2 - 2 = ?", "22 = ?", "2 + 2 + 2 = ?")
    left = without_held_out(prompted(copy, *others), prompted("2 + 2 = ?"))
    assert [problem.prompt for problem, _ in left] == list(others)


def test_letter_case_makes_no_other_question() -> None:
    assert (
        len(without_held_out(prompted("FIND the sum of 3 and 4", "Find 3"), prompted("Find the sum of 3 and 4."))) == 1
    )


def test_nothing_left_is_refused() -> None:
    with refused(ErrorCode.DATA_HELD_OUT, key="eval.data"):
        without_held_out(prompted("2 + 2 = ? "), prompted("2 + 2 = ?"))


def test_sequences_that_cannot_be_shared_are_refused() -> None:
    """The tiny reasoner has 4 attention heads."""
    settings = ["backend.kind=torchrun", "data.size=20", "eval.problems=2"]
    with refused(ErrorCode.MODEL_UNSUPPORTED, key="optim.sequence_parallel"):
        load_inputs(ulorl.load([COUNTDOWN], [*settings, "optim.sequence_parallel=3"]))
