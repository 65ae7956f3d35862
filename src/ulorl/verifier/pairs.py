"""Labelled pairs of a reference and an answer, on which verifiers are trained and measured (section 3.3)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ulorl.common import atomic_files
from ulorl.common.parquet import write_parquet
from ulorl.data.record_files import TYPED_ENDINGS, Record, expand_pattern, read_records
from ulorl.error_codes import ErrorCode
from ulorl.errors import ErrorCollector, UserError, bad_character


@dataclass(frozen=True)
class Pair:
    """A reference and an answer, and whether they are equivalent.

    `kind` is the spelling of the answer, regardless of its value: both labels occur in every kind, so that accuracy can
    be balanced kind by kind.
    """

    question: str
    reference: str
    answer: str
    equivalent: bool
    kind: str  # "units", "words", "fraction", ...; "real" for graded outputs of models
    change: str  # of the value: "sign", "unit", "digits", ...; "" for an equivalent answer, and where it is unknown
    source: str  # the data set
    problem: str  # the problem's id


_TEXTS = tuple(field.name for field in fields(Pair) if field.name != "equivalent")
_NEEDED = ("question", "reference", "answer")


def read_pairs(paths: Sequence[str | Path]) -> list[Pair]:
    """Read the pairs of JSONL, JSON or Parquet files, given as paths or glob patterns, in their order. The fields
    question, reference, answer and equivalent are required; kind and source default to "unknown", change and problem
    to "".

    Raises UserError naming file, record and field, with the first ten of many faults.
    """
    pairs, faults = list[Pair](), ErrorCollector()
    for path in paths:
        before = len(pairs)
        for file in expand_pattern(str(path)):
            for record in read_records(file, TYPED_ENDINGS):
                with faults:
                    if isinstance(record, UserError):
                        raise record
                    pairs.append(_pair(record))
        with faults:
            if len(pairs) == before:
                message = f"{path}: has no pairs; `ulorl verifier data` makes some"
                raise UserError(message, code=ErrorCode.DATA_TOO_FEW, file=path)
    faults.raise_errors()
    return pairs


def write_pairs(pairs: Sequence[Pair], path: Path) -> None:
    """Write pairs as .jsonl or .parquet, by the ending of `path`, atomically.

    Raises UserError for another ending, and when the file cannot be written.
    """
    if path.suffix not in (".jsonl", ".parquet"):
        message = f"{path}: pairs are written as .jsonl or .parquet; choose such an ending"
        raise UserError(message, code=ErrorCode.COMMAND_LINE, file=path)
    if path.parent.exists() and not path.parent.is_dir():
        message = f"{path}: cannot be written: {path.parent} is a file; choose another place"
        raise UserError(message, code=ErrorCode.FILE_NOT_WRITABLE, file=path)
    with atomic_files.writing(path, lambda: "Choose another place, or free space"):
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [asdict(pair) for pair in pairs]
        if path.suffix == ".parquet":
            columns = {field.name: bool if field.name == "equivalent" else str for field in fields(Pair)}
            write_parquet(path, rows, columns)
        else:
            atomic_files.write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _pair(record: Record) -> Pair:
    values = record.fields
    for name in (*_NEEDED, "equivalent"):
        if values.get(name) is None:
            there = record.field_names()
            raise record.error(f"no field {name!r}, or nothing in it; a pair needs it; there are {there}")
    if not isinstance(values["equivalent"], bool):
        raise record.wrong("equivalent", values["equivalent"], "true or false")
    texts = {"kind": "unknown", "change": "", "source": "unknown", "problem": ""}
    for name in _TEXTS:
        value = values.get(name)
        if value is None:
            continue
        if not isinstance(value, str):
            raise record.wrong(name, value, "text; put it in quotes")
        if where := bad_character(value):
            raise record.error(f"field {name!r} {where}; remove it")
        texts[name] = value
    return Pair(equivalent=values["equivalent"], **texts)
