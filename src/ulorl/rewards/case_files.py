"""Reads the records that `ulorl reward test` judges: an output or an answer, its reference, and a label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ulorl.data.record_files import TYPED_ENDINGS, Record, decimal, expand_pattern, is_number, read_records
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError, bad_character, listing
from ulorl.types import Problem

_OPTIONS = ("options", "choices")


@dataclass(frozen=True)
class Case:
    """A record to judge. It has either an `output` (whole) or an `answer` (already extracted)."""

    place: str  # file and line
    problem: Problem
    output: str | None
    answer: str | None
    label: bool | None = None  # whether it is right; None: unknown


def read_cases(paths: Sequence[str]) -> list[Case]:
    """Return the cases of JSONL, JSON or Parquet files, in their order. paths: of files, or glob patterns.

    Raises UserError naming file and line of bad records, the first ten of many.
    """
    cases, faults = list[Case](), list[UserError]()
    for path in paths:
        files = expand_pattern(path)
        for record in (record for file in files for record in read_records(file, TYPED_ENDINGS)):
            try:
                cases.append(case_of(record))
            except UserError as error:
                faults.append(error)
    if faults:
        raise bad_records(faults)
    if not cases:
        raise UserError(f"{' '.join(paths)}: no records", code=ErrorCode.DATA_TOO_FEW, file=paths[0])
    return cases


def case_of(record: Record | UserError) -> Case:
    """Return the case of a record, and raise what could not be read. Raises UserError naming record and field."""
    if isinstance(record, UserError):
        raise record
    fields = {name: value for name, value in record.fields.items() if value is not None}
    texts = {name: _text(record, name, fields[name]) for name in ("reference", "output", "answer") if name in fields}
    if not texts.get("reference", "").strip():
        raise record.error(f"no field 'reference', or nothing in it; the fields are {record.field_names()}")
    if ("output" in texts) is ("answer" in texts):
        found = "both" if "output" in texts else "neither"
        raise record.error(
            "give 'output' (a whole output) or 'answer' (an answer that is extracted already), one of them, found "
            f"{found}; the fields are {record.field_names()}"
        )
    question = _text(record, "question", fields.get("question", ""))
    label = fields.get("label")
    if label is not None and label not in (0, 1):
        raise record.wrong("label", label, "true, false, 1 or 0")
    meta = fields.get("meta", {})
    if not isinstance(meta, dict):
        raise record.wrong("meta", meta, "an object")
    meta = {**{name: fields[name] for name in _OPTIONS if name in fields}, **meta}
    name = fields.get("id")
    problem = Problem(
        str(name) if isinstance(name, str | int) else record.place, question, texts["reference"].strip(), meta
    )
    return Case(record.place, problem, texts.get("output"), texts.get("answer"), None if label is None else bool(label))


def bad_records(faults: Sequence[UserError]) -> UserError:
    """Return one error that names several bad records; its place is that of the first one."""
    message = f"{len(faults)} bad records:\n{listing(faults)}"
    return UserError(message, code=faults[0].code, file=faults[0].file, record=faults[0].record)


def _text(record: Record, name: str, value: Any) -> str:
    """Return a field as text; numbers are written as in the problems of training."""
    if not (is_number(value) or isinstance(value, str)):
        raise record.wrong(name, value, "text or a number")
    text = value if isinstance(value, str) else decimal(value)
    if where := bad_character(text):
        raise record.error(f"field {name!r} {where}; remove it")
    return text
