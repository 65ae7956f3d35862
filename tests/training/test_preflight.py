"""Problems and models that a run cannot train on, found before weights are loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import ulorl
from paths import COUNTDOWN
from refusals import refused
from ulorl.error_codes import ErrorCode
from ulorl.models.model_source import ModelSource
from ulorl.training.preflight import load_inputs, without_held_out
from ulorl.types import Problem, Prompted


def prompted(*questions: str) -> list[Prompted]:
    return [(problem, np.zeros(1, np.int32)) for problem in problems(*questions)]


def problems(*questions: str) -> list[Problem]:
    return [Problem(str(i), question) for i, question in enumerate(questions)]


@pytest.mark.parametrize(
    "copy", ["2 + 2 = ? ", "2 + 2 = ?", "2+2=?", "2 + 2 =", "$2 + 2 = ?$", "2 + 2 =\n?", "\\(2 + 2\\) = ?"]
)
def test_a_held_out_question_in_other_typesetting_does_not_train(copy: str) -> None:
    others = ("2 - 2 = ?", "22 = ?", "2 + 2 + 2 = ?")
    left = without_held_out(prompted(copy, *others), problems("2 + 2 = ?"))
    assert [problem.prompt for problem, _ in left] == list(others)


def test_letter_case_makes_no_other_question() -> None:
    training = prompted("FIND the sum of 3 and 4", "Find 3")
    assert len(without_held_out(training, problems("Find the sum of 3 and 4."))) == 1


def test_nothing_left_is_refused() -> None:
    with refused(ErrorCode.DATA_HELD_OUT, key="eval.data"):
        without_held_out(prompted("2 + 2 = ? "), problems("2 + 2 = ?"))


def test_held_out_problems_that_are_not_evaluated_do_not_train_either(tmp_path: Path) -> None:
    """`eval.problems=1` evaluates the first of two held-out problems; the second one is a training problem."""
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    for path, questions in ((train, ("5,2,3>10", "6,2,3>11", "7,2,3>12")), (test, ("8,2,3>13", "6,2,3>11"))):
        path.write_text("".join(json.dumps({"problem": q, "answer": q.partition(">")[2]}) + "\n" for q in questions))
    settings = ["data.kind=files", f"data.path={train}", "data.size=0", "reward.kind=math"]
    inputs = load_inputs(ulorl.load([COUNTDOWN], [*settings, f"eval.data={{path='{test}',size=0}}", "eval.problems=1"]))
    assert [problem.prompt for problem, _ in inputs.problems] == ["5,2,3>10", "7,2,3>12"]
    assert [problem.prompt for problem, _ in inputs.held_out] == ["8,2,3>13"]


def test_problems_that_the_reward_cannot_judge_are_bad(tmp_path: Path) -> None:
    """Options that are no list would stop the run when the first output to them is judged."""
    path = tmp_path / "train.jsonl"
    records = [{"id": f"p{i}", "problem": "5,2,3>10", "answer": "A", "options": o} for i, o in enumerate((["10"], 3))]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    settings = ["data.kind=files", f"data.path={path}", "data.size=0", 'data.keep=["options"]', "reward.kind=choice"]
    settings += ["eval={}"]
    with refused(ErrorCode.REWARD_PROBLEM, record=f"{path}:2"):
        load_inputs(ulorl.load([COUNTDOWN], settings))
    inputs = load_inputs(ulorl.load([COUNTDOWN], [*settings, "data.bad=skip"]))
    assert [problem.id for problem, _ in inputs.problems] == ["p0"]


def test_bfloat16_weights_are_refused_in_new_runs_only(tmp_path: Path) -> None:
    """A run that began with an earlier commit can be resumed."""
    cfg = ulorl.load([COUNTDOWN], ["model.dtype=bfloat16", "data.size=20", "eval.problems=2"])
    with refused(ErrorCode.CONFIG_CONFLICT, key="model.dtype"):
        load_inputs(cfg)
    (tmp_path / "model").symlink_to(ModelSource("ulorl:tiny").location)
    assert load_inputs(cfg, tmp_path).source.path == str(tmp_path / "model")


def test_sequences_that_cannot_be_shared_are_refused() -> None:
    """The tiny reasoner has 4 attention heads."""
    settings = ["backend.kind=torchrun", "data.size=20", "eval.problems=2"]
    with refused(ErrorCode.MODEL_UNSUPPORTED, key="optim.sequence_parallel"):
        load_inputs(ulorl.load([COUNTDOWN], [*settings, "optim.sequence_parallel=3"]))
