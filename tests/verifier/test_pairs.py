"""Pairs in files: what is written comes back, and what is wrong is named with its place."""

import json

import pytest

from refusals import refused
from ulorl.error_codes import ErrorCode
from ulorl.rewards.case_files import read_cases
from ulorl.verifier.pairs import Pair, read_pairs, write_pairs

PAIRS = [
    Pair("How long, in cm?", "27", "0.27 m", True, "units", "", "made", "made/1"),
    Pair(
        "Wie groß?\nIn ganzen Zahlen.", r"\frac{1}{2}", "one third \U0001f600", False, "words", "part", "made", "made/2"
    ),
]


@pytest.mark.parametrize("name", ["pairs.jsonl", "new/pairs.parquet"])
def test_pairs_come_back(tmp_path, name):
    write_pairs(PAIRS, tmp_path / name)
    assert read_pairs([tmp_path / name]) == PAIRS
    assert [file.name for file in (tmp_path / name).parent.iterdir() if file.is_file()] == [name.rpartition("/")[2]]


def test_only_four_fields_are_needed(tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps({"question": "q", "reference": "1", "answer": "one", "equivalent": True}))
    assert read_pairs([file]) == [Pair("q", "1", "one", True, "unknown", "", "unknown", "")]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"answer": None}, "answer"),
        ({"equivalent": 1}, "equivalent"),
        ({"reference": 5}, "reference"),
        ({"kind": "a\0b"}, "kind"),
    ],
)
def test_a_fault_is_named_with_file_line_and_field(tmp_path, change, field):
    file = tmp_path / "bad.jsonl"
    write_pairs(PAIRS, file)
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], json.dumps(json.loads(lines[1]) | change)]))
    with refused(ErrorCode.DATA_BAD_RECORD, record=f"{file}:2") as error:
        read_pairs([file])
    assert f"field {field!r}" in str(error.value)


def test_all_faults_are_told_at_once(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n[]\n")
    (tmp_path / "empty.jsonl").write_text("")
    with refused(ErrorCode.DATA_TOO_FEW, file=tmp_path / "empty.jsonl") as error:
        read_pairs([tmp_path / "a.jsonl", tmp_path / "empty.jsonl"])
    assert all(place in str(error.value) for place in ("a.jsonl:1", "a.jsonl:2"))


def test_missing_files_and_other_endings_are_refused(tmp_path):
    with refused(ErrorCode.DATA_NOT_FOUND):
        read_pairs([tmp_path / "none.jsonl"])
    with refused(ErrorCode.COMMAND_LINE, file=tmp_path / "pairs.csv"):
        write_pairs(PAIRS, tmp_path / "pairs.csv")
    (tmp_path / "file").write_text("")
    with refused(ErrorCode.FILE_NOT_WRITABLE):
        write_pairs(PAIRS, tmp_path / "file" / "pairs.jsonl")


def test_csv_has_no_true_and_no_false(tmp_path):
    file = tmp_path / "pairs.csv"
    file.write_text("question,reference,answer,equivalent\nq,1,one,true\n")
    for read in (read_pairs, read_cases):
        with refused(ErrorCode.DATA_UNREADABLE, file=file) as caught:
            read([str(file)])
        assert "expected a file that ends in .jsonl, .json, .parquet" in str(caught.value)
