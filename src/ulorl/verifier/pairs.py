"""Labelled pairs of a reference and an answer: what a verifier is trained on and measured by (section 3.3)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ulorl.common import atomic_files
from ulorl.common.parquet import write_parquet
from ulorl.data.record_files import Record, expand_pattern, read_records
from ulorl.errors import ErrorCollector, UserError, bad_character


@dataclass(frozen=True)
class Pair:
    """One judgement. `kind` is the spelling that the answer wears, whatever its value: both labels occur in every
    kind, so that accuracy can be balanced kind by kind. `change` is what was done to the value: "" where equivalent.
    """

    question: str
    reference: str
    answer: str
    equivalent: bool
    kind: str  # "units", "words", "fraction", ...; "real" for graded outputs of models
    change: str  # "sign", "unit", "digits", ...; "" for an equivalent answer, and where nobody knows
    source: str  # the data set
    problem: str  # the problem's id


_TEXTS = tuple(field.name for field in fields(Pair) if field.name != "equivalent")
_NEEDED = ("question", "reference", "answer")


def read_pairs(paths: Sequence[str | Path]) -> list[Pair]:
    """The pairs of JSONL, JSON or Parquet files, paths or glob patterns, in their order. question, reference, answer
    and equivalent must be there; of the others, kind and source are "unknown" and change and problem "" without them.

    Raises UserError naming file, record and field; of many faults the first ten.
    """
    pairs, faults = list[Pair](), ErrorCollector()
    for path in paths:
        before = len(pairs)
        for file in expand_pattern(str(path)):
            for record in read_records(file):
                with faults:
                    if isinstance(record, UserError):
                        raise record
                    pairs.append(_pair(record))
        with faults:
            if len(pairs) == before:
                raise UserError(f"{path}: holds no pairs; `ulorl verifier data` makes some")
    faults.raise_errors()
    return pairs


def write_pairs(pairs: Sequence[Pair], path: Path) -> None:
    """One file, by its ending .jsonl or .parquet; whole, or the one that was there before.

    Raises UserError for another ending, and where it cannot be written.
    """
    if path.suffix not in (".jsonl", ".parquet"):
        raise UserError(f"{path}: pairs are written as .jsonl or .parquet; choose such an ending")
    if path.parent.exists() and not path.parent.is_dir():
        raise UserError(f"{path}: cannot be written: {path.parent} is a file; choose another place")
    with atomic_files.writing(path, lambda: "choose another place or make room"):
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
            there = ", ".join(map(str, values)) or "none"
            raise UserError(
                f"{record.place}: no field {name!r}, or nothing in it; a pair needs it; there are {there[:300]}"
            )
    if not isinstance(values["equivalent"], bool):
        found = json.dumps(values["equivalent"], default=str)[:80]
        raise UserError(f"{record.place}: field 'equivalent' is {found}, expected true or false")
    texts = {"kind": "unknown", "change": "", "source": "unknown", "problem": ""}
    for name in _TEXTS:
        value = values.get(name)
        if value is None:
            continue
        if not isinstance(value, str):
            raise UserError(f"{record.place}: field {name!r} is {str(value)[:80]}, expected text; put it in quotes")
        if where := bad_character(value):
            raise UserError(f"{record.place}: field {name!r} {where}; remove it")
        texts[name] = value
    return Pair(equivalent=values["equivalent"], **texts)
