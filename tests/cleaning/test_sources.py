"""Sources of `ulorl data clean`: fields record by record, options kept apart, numbers, and broken files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pandas
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from refusals import refused
from ulorl.cleaning import pipeline
from ulorl.cleaning.cleaning_config import CleaningConfig, SourceConfig
from ulorl.cleaning.items import Item
from ulorl.cleaning.sources import Unreadable, list_sources, read_source
from ulorl.config.data_config import FilesDataConfig
from ulorl.data.problems import load_problems
from ulorl.data.record_files import decimal
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError

ASKED = "What is the number after {}?"


def lines(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def read(path: Path, **keys: Any) -> list[Item | Unreadable]:
    table = {path.stem: SourceConfig(**keys)} if keys else {}
    return [record for source in list_sources([str(path)], table) for record in read_source(source)]


def answers(path: Path, **keys: Any) -> list[str]:
    return [record.answer if isinstance(record, Item) else record.message for record in read(path, **keys)]


def message_of(path: Path, **keys: Any) -> str:
    (record,) = read(path, **keys)
    assert isinstance(record, Unreadable)
    return record.message


@pytest.mark.parametrize("unreadable", ["refuse", "drop"])
def test_no_answer_column(unreadable: str, tmp_path: Path) -> None:
    path = tmp_path / "raw.csv"
    path.write_text("question,label\nWhat is 1 + 1?,2\nWhat is 2 + 2?,4\n")
    config = CleaningConfig.model_validate({"unreadable": unreadable})
    if unreadable == "refuse":
        with refused(ErrorCode.DATA_BAD_RECORD, key="sources.raw.answer", record=f"{path}: record 2"):
            pipeline.clean([str(path)], tmp_path / "out", config)
        return
    result, _ = pipeline.clean([str(path)], tmp_path / "out", config)
    assert not result.kept
    assert [gone.item.id for gone in result.dropped] == ["raw/unreadable-1", "raw/unreadable-2"]


def test_fields_are_chosen_record_by_record(tmp_path: Path) -> None:
    """The first record's empty answer does not send the others to their solutions; the report counts the fields."""
    path = lines(
        tmp_path / "raw.jsonl",
        {"problem": ASKED.format(1), "answer": None, "solution": "It is \\boxed{2}."},
        {"problem": ASKED.format(2), "answer": "3", "solution": "It is \\boxed{30}."},
        {"question": ASKED.format(3), "answer": " ", "final_answer": "4"},
        {"problem": ASKED.format(4), "answer": None},
    )
    assert answers(path) == ["It is \\boxed{2}.", "3", "4", ""]
    _, files = pipeline.clean([str(path)], tmp_path / "out", CleaningConfig())
    report = json.loads(files.report.read_text(encoding="utf-8"))
    assert report["fields_by_source"] == {
        "raw": {"question": {"problem": 3, "question": 1}, "answer": {"solution": 1, "answer": 2, "final_answer": 1}}
    }
    assert "| `answer`: 2, `final_answer`: 1, `solution`: 1 |" in files.card.read_text(encoding="utf-8")


OPTIONS = ["four", "five", "six", "seven"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"choices": OPTIONS, "answer": 2}, "six"),  # MMLU
        ({"choices": OPTIONS, "answer": "2"}, "six"),
        ({"choices": OPTIONS, "answer": 2.0}, "six"),
        ({"choices": OPTIONS, "answer": "C"}, "six"),
        ({"options": OPTIONS, "answer": "(c)"}, "six"),  # MMLU-Pro
        ({"options": dict(zip("ABCD", OPTIONS, strict=True)), "answer": "B"}, "five"),  # MedQA
        ({"options": ["A)four", "B)five"], "answer": "B"}, "five"),  # AQuA
        ({"choices": {"text": OPTIONS, "label": ["1", "2", "3", "4"]}, "answerKey": "2"}, "five"),  # ARC
        ({"choices": str(OPTIONS), "answer": "1"}, "five"),  # a cell of CSV
        ({"A": "four", "B": "five", "C": "six", "answer": "B"}, "five"),  # C-Eval
        ({"choices": OPTIONS, "answer": "seven"}, "seven"),
        ({"choices": OPTIONS, "answer": None, "solution": "So the answer is (D)."}, "seven"),
        ({"choices": ["3", "5", "8"], "answer": 1}, "5"),
        ({"choices": [], "answer": "2"}, "2"),  # none
        ({"choices": [float("inf"), 3], "answer": "3"}, "3"),  # Infinity, as Python writes it into JSON
    ],
)
def test_options_kept_apart(fields: dict[str, Any], expected: str, tmp_path: Path) -> None:
    (record,) = read(lines(tmp_path / "raw.jsonl", {"question": "How many are there?", **fields}))
    assert isinstance(record, Item), record
    assert record.answer == expected
    assert ("(B) five" in record.question) == (expected in OPTIONS)
    assert record.original_question == "How many are there?"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"choices": OPTIONS, "answer": 4}, "raw.jsonl:1: field 'answer' is '4', which names none of the 4 options"),
        ({"choices": OPTIONS, "answer": 4}, "first_choice=1"),
        ({"choices": OPTIONS, "answer": "E"}, "names none of the 4 options in 'choices'"),
        ({"choices": OPTIONS, "answer": "eight"}, "names none"),
        ({"choices": ["3", "2", "1"], "answer": "2"}, "the number of one option and the text of another"),
    ],
)
def test_options_that_the_answer_does_not_name(fields: dict[str, Any], says: str, tmp_path: Path) -> None:
    assert says in message_of(lines(tmp_path / "raw.jsonl", {"question": "How many?", **fields}))


def test_the_first_option_can_have_number_one(tmp_path: Path) -> None:
    path = lines(tmp_path / "raw.jsonl", {"question": "How many?", "picks": OPTIONS, "answer": 4})
    assert answers(path, choices="picks", first_choice=1) == ["seven"]


def test_options_take_part_in_cleaning(tmp_path: Path) -> None:
    """A self-contained question keeps the option's text; one that needs its options, or has no value for an answer,
    goes."""
    path = lines(
        tmp_path / "raw.jsonl",
        {"question": "What is the smallest prime above 12?", "choices": ["12", "13", "14", "15"], "answer": 1},
        {"question": "Which of the following is prime?", "choices": ["11", "12", "14", "15"], "answer": 0},
        {"question": "What is the value of 3 + 4?", "choices": ["5", "6", "8", "none of these"], "answer": 3},
    )
    result, _ = pipeline.clean([str(path)], tmp_path / "out", CleaningConfig())
    assert [(item.question, item.answer) for item in result.kept] == [("What is the smallest prime above 12?", "13")]
    assert {gone.step for gone in result.dropped} == {"multiple_choice"}


@pytest.mark.parametrize(
    ("spelling", "text"),
    [
        ("0.00004", "0.00004"), ("4e-05", "0.00004"), ("1e22", "1" + "0" * 22), ("0.1", "0.1"), ("-0.0", "0"),
        ("5.0", "5"), ("2.50", "2.50"), ("-3", "-3"), ("0.12345678901234567891", "0.12345678901234567891"),
        ("1.5e-7", "0.00000015"), ("123456789012345678901", "123456789012345678901"),
    ],
)  # fmt: skip
def test_numbers_without_exponents(spelling: str, text: str, tmp_path: Path) -> None:
    """In cleaning and in training alike, as the source has their digits."""
    path = tmp_path / "raw.jsonl"
    path.write_text(f'{{"problem": "How much?", "answer": {spelling}}}\n')
    assert answers(path) == [text]
    assert load_problems(FilesDataConfig(path=str(path)))[0].answer == text


def test_numbers_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "raw.parquet"
    frame = pandas.DataFrame({"problem": ["a?", "b?", "c?"], "answer": [4e-05, 7.0, None]})
    frame.to_parquet(path)
    assert answers(path) == ["0.00004", "7", ""]
    frame.astype({"answer": "float32"}).to_parquet(path)
    assert answers(path) == ["0.00004", "7", ""]


@given(st.floats(allow_nan=False, allow_infinity=False))
@example(5e-324)
@example(1.7976931348623157e308)
def test_decimal_is_the_same_number(number: float) -> None:
    assert float(decimal(number)) == number
    assert "e" not in decimal(number)


def test_long_cells_doubled_columns_and_empty_files(tmp_path: Path) -> None:
    path = tmp_path / "raw.csv"
    path.write_text(f"question,answer\nWhy?,{'x' * 200_000}\n\nHow?,2\n")
    assert [len(answer) for answer in answers(path)] == [200_000, 1]
    path.write_text("question,answer,answer\nWhy?,1,2\n")
    with refused(ErrorCode.DATA_UNREADABLE, file=path):
        read(path)
    path.write_text("question,answer\nHow?,1,2\n")
    assert "record 1: holds 3 cells, the header names 2" in message_of(path)
    path.write_text('question,answer\nHow?,1\n"Why"?,2\n')
    with refused(ErrorCode.DATA_UNREADABLE, record=f"{path}: record 2"):
        read(path)
    path.write_bytes(b"question,answer\nHow\xe9?,1\nWhy?,2\n")
    broken, good = read(path)
    assert isinstance(broken, Unreadable)
    assert "record 1: field 'question' is not UTF-8" in broken.message
    assert isinstance(good, Item)
    for name, text in (("a.csv", ""), ("b.csv", "question,answer\n"), ("c.jsonl", "\n"), ("d.json", "[]")):
        (tmp_path / name).write_text(text)
        with refused(ErrorCode.DATA_TOO_FEW, file=tmp_path / name):
            pipeline.clean([str(tmp_path / name)], tmp_path / "out", CleaningConfig())


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 5), st.floats(), st.sampled_from(["", " ", "4", "B", "\x00", "\ud800"]),
    st.text(max_size=4), st.lists(st.one_of(st.text(max_size=2), st.integers(), st.none()), max_size=4),
    st.lists(st.dictionaries(st.sampled_from(["role", "content"]), st.one_of(st.none(), st.text(max_size=3)))),
    st.dictionaries(st.sampled_from(["text", "label", "A", "B", "target"]), st.lists(st.text(max_size=2), max_size=3)),
)  # fmt: skip
COLUMN = st.sampled_from([
    "problem", "question", "prompt", "answer", "solution", "label", "ground_truth", "reward_model", "choices",
    "options", "A", "B", "id", "", "\ud800",
])  # fmt: skip
TABLES = st.lists(st.dictionaries(COLUMN, ODD, max_size=5), max_size=4)


def _write(path: Path, records: list[dict[str, Any]]) -> bool:
    """Whether the format can hold the records."""
    try:
        if path.suffix == ".parquet":
            pandas.DataFrame(records).to_parquet(path)
        elif path.suffix == ".csv":
            with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
                writer = csv.DictWriter(file, sorted({name for record in records for name in record}))
                writer.writeheader()
                writer.writerows(records)
        elif path.suffix == ".jsonl":
            lines(path, *records)
        else:
            path.write_text(json.dumps(records), encoding="utf-8")
    except Exception:  # whatever pyarrow makes of mixed columns
        return False
    return True


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl", "parquet"])
@settings(max_examples=25, deadline=None)
@given(TABLES)
@example([{"question": "1 + 1?", "label": "2"}, {"question": "2 + 2?", "label": "4"}])
def test_any_columns(tmp_path_factory: pytest.TempPathFactory, ending: str, records: list[dict[str, Any]]) -> None:
    """A source as a whole is refused, or each record becomes an item or is named; then it can be cleaned and stored."""
    folder = tmp_path_factory.mktemp("any")
    path = folder / f"raw.{ending}"
    if not _write(path, records):
        return
    config = CleaningConfig.model_validate({"unreadable": "drop", "language": {"enabled": False}})
    refusal = ""
    try:
        result, _ = pipeline.clean([str(path)], folder / "out", config)
    except UserError as error:
        refusal = str(error)
    if refusal:
        assert str(path) in refusal
        return
    assert len(result.kept) + len(result.dropped) == result.sources["raw"] > 0
    assert all(str(path) in gone.item.place for gone in result.dropped)
