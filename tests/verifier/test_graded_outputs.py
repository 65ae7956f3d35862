"""Graded outputs of others as pairs."""

import json

import pytest

from paths import SHARED
from refusals import refused
from ulorl.error_codes import ErrorCode
from ulorl.verifier.graded_outputs import SHAPES, Columns, columns_of, read_graded

DATA = SHARED / "verifier"
NESTED = Columns("data.problem", "data.solutions", ("runs.texts",), ("runs.rewards",))


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_lists_are_zipped_and_answers_taken_from_outputs(tmp_path):
    path = write(
        tmp_path / "graded.jsonl",
        {
            "data": {
                "problem": "<｜User｜>How long?\n"
                "Please reason step by step, and put your final answer within \\boxed{}."
                "<｜Assistant｜><think>",
                "solutions": [r"\boxed{27}"],
            },
            "runs": {"texts": [r"so \boxed{\frac{1}{2}}", r"\boxed{27}.", "I give"], "rewards": [-5.0, 5.0, -5.0]},
        },
    )
    graded = read_graded(path, NESTED)
    assert [(p.answer, p.equivalent) for p in graded.pairs] == [(r"\frac{1}{2}", False), ("27", True)]
    assert graded.without_answer == 1
    first = graded.pairs[0]
    assert (first.question, first.reference, first.kind, first.change) == ("How long?", "27", "real", "")
    assert (first.source, first.problem) == ("graded", "graded/1")


def test_several_fields_and_markers(tmp_path):
    path = write(
        tmp_path / "g.jsonl",
        {
            "question": "q",
            "truth": "1+1\nA: 2",
            "a": {"text": "A: 3\nA: 2", "ok": True},
            "b": {"text": "no", "ok": False},
        },
    )
    columns = Columns("question", "truth", ("a.text", "b.text"), ("a.ok", "b.ok"), "A:", "A:")
    graded = read_graded(path, columns, source="named")
    assert [(p.reference, p.answer, p.equivalent, p.source) for p in graded.pairs] == [("2", "2", True, "named")]
    assert graded.without_answer == 1


def test_outputs_that_are_answers_already(tmp_path):
    path = write(tmp_path / "g.jsonl", {"question": "q", "answer": 4, "output": [" 4 ", 1e-05], "correct": [1, 0]})
    assert [p.answer for p in read_graded(path, Columns(bare=True)).pairs] == ["4", "0.00001"]


GOOD = {"question": "q", "answer": "4", "output": ["4", "5"], "correct": [True, False]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"correct": [True]}, "'output' has 2 entries and 'correct' 1"),
        ({"correct": ["yes", "no"]}, """'correct' is "yes", expected true or false"""),
        ({"output": [["4"], "5"]}, "'output' is [\"4\"], expected text"),
        ({"answer": None}, "no field 'answer', or nothing in it; the fields are question, answer"),
    ],
)
def test_faults_name_file_line_and_field(tmp_path, change, said):
    path = write(tmp_path / "g.jsonl", GOOD, GOOD | change)
    with refused(ErrorCode.DATA_BAD_RECORD, record=f"{path}:2") as error:
        read_graded(path, Columns(bare=True))
    assert said in str(error.value)


def test_columns_must_go_together_and_something_must_be_there(tmp_path):
    path = write(tmp_path / "g.jsonl", GOOD)
    with refused(ErrorCode.CONFIG_CONFLICT):
        read_graded(path, Columns(outputs=("a", "b")))
    with refused(ErrorCode.DATA_BAD_RECORD, record=f"{path}:1"):
        read_graded(path, Columns(reference_after="####"))
    with refused(ErrorCode.DATA_TOO_FEW):
        read_graded(path, Columns())
    with refused(ErrorCode.DATA_NOT_FOUND):
        read_graded(str(tmp_path / "none.jsonl"), Columns())


@pytest.mark.skipif(not DATA.exists(), reason="needs the shared data beside the repository")
@pytest.mark.parametrize(
    ("name", "shape", "right", "wrong", "without"),
    [
        ("qwen25math_math_cot_100", "qwen2.5-math", 728, 72, 0),
        ("areal_math_answers_sample_cases", "areal", 83, 75, 2),
        ("gsm8k_example_model_solutions", "gsm8k-solutions", 2001, 3264, 11),
    ],
)
def test_published_files(name, shape, right, wrong, without):
    """Every output of the INDEX: 100 x 8, 10 x 16, 1,319 x 4."""
    path = DATA / f"{name}.jsonl"
    with path.open() as lines:
        assert columns_of(json.loads(next(lines))) == SHAPES[shape]
    graded = read_graded(str(path), SHAPES[shape])
    assert sum(pair.equivalent for pair in graded.pairs) == right
    assert len(graded.pairs) == right + wrong
    assert graded.without_answer == without
