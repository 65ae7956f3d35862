"""Records of JSON Lines, JSON, Parquet and CSV files, one at a time, each with its place for messages.

JSON is read here line by line because `datasets` guesses one schema for a whole file and cannot say which line is bad;
Parquet, which carries its schema, streams through `datasets`.
"""

from __future__ import annotations

import csv
import glob
import inspect
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from ulorl.errors import UserError

_MAX_DIGITS = 4300  # of a whole number, as in Python


@dataclass(frozen=True)
class Record:
    place: str  # file.jsonl:12 or file.parquet: record 12, counted from 1
    fields: dict[str, Any]


class WrittenNumber(float):
    """A number of a JSON file that also knows its spelling there: 2.50, and digits that a float has no place for."""

    spelling = ""

    @classmethod
    def read(cls, spelling: str) -> WrittenNumber:
        number = cls(spelling)
        number.spelling = spelling
        return number


def is_number(value: object) -> bool:
    """Whether a value can be a reference that `decimal` writes: a finite number and no truth value."""
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (isinstance(value, float | Decimal) and math.isfinite(value))


def decimal(number: float | Decimal) -> str:
    """A finite number as text, in the digits of its source and without an exponent, which no reward reads: 0.00004 for
    4e-05. Whole numbers lose their point (5 for 5.0, which is how pandas stores 5 in a column with gaps), and 0 its
    sign."""
    exact = Decimal(getattr(number, "spelling", "") or str(number))
    if not exact:
        return "0"
    if exact == exact.to_integral_value():
        return str(int(exact)) if exact.adjusted() < _MAX_DIGITS else str(exact)
    return f"{exact:f}" if exact.adjusted() > -_MAX_DIGITS else str(exact)


def expand_pattern(pattern: str) -> list[Path]:
    """The files a path or a glob pattern names, sorted. Raises UserError when there are none."""
    path = os.path.expanduser(pattern)  # os.path finds nothing where Path raises: names too long, unknown users
    found = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
    files = [Path(file) for file in found if os.path.isfile(file)]
    if not files:
        what = "is a folder; name its files, for example with *.jsonl" if os.path.isdir(path) else "no such file"
        raise UserError(f"data.path={pattern[:300]}: {what}")
    return files


def read_records(path: Path) -> Iterator[Record | UserError]:
    """The records of one file; in the place of one that cannot be read, the UserError that names its line or number.
    Raises UserError when the file as a whole cannot be read.
    """
    try:
        if path.suffix == ".parquet":
            yield from _parquet(path)
        elif path.suffix == ".jsonl" or (path.suffix == ".json" and not _is_array(path)):
            yield from _json_lines(path)
        elif path.suffix == ".json":
            yield from _json_array(path)
        else:
            packed = path.suffix in (".gz", ".bz2", ".xz", ".zst", ".zip")
            mend = "unpack it first" if packed else "expected a file that ends in .jsonl, .json or .parquet"
            raise UserError(f"{path}: {mend}")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def read_csv(path: Path) -> Iterator[Record | UserError]:
    """As `read_records`, of a CSV file with a header. Every cell is text, 007 is 007, which `datasets` would read as a
    number."""
    csv.field_size_limit(2**31 - 1)  # the module's own limit of 131,072 characters fails a file without saying where
    number = 0
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
            rows = csv.reader(lines, strict=True)
            header = next(rows, [])
            if doubled := sorted({name for name in header if header.count(name) > 1}):
                shown = ", ".join(map(repr, doubled))[:300]
                raise UserError(f"{path}: the header names {shown} more than once; give every column its own name")
            for row in filter(None, rows):
                number += 1
                yield _row(f"{path}: record {number}", header, row)
    except csv.Error as error:
        raise UserError(f"{path}: record {number + 1}: cannot be read as CSV: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def _row(place: str, header: list[str], row: list[str]) -> Record | UserError:
    if len(row) != len(header):
        return UserError(f"{place}: holds {len(row)} cells, the header names {len(header)}")
    for name, cell in zip(header, row, strict=True):
        if any("\udc80" <= character <= "\udcff" for character in cell):  # bytes that are no UTF-8
            return UserError(f"{place}: field {name!r} is not UTF-8 text; save the file as UTF-8")
    return Record(place, dict(zip(header, row, strict=True)))


def _json_lines(path: Path) -> Iterator[Record | UserError]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield _record(f"{path}:{number}", _parse(line.rstrip(), f"{path}:{number}"))
                except UserError as error:
                    yield error


def _json_array(path: Path) -> Iterator[Record | UserError]:
    for number, value in enumerate(_parse(path.read_bytes(), str(path)), 1):
        yield _record(f"{path}: record {number}", value)


def _parquet(path: Path) -> Iterator[Record]:
    import datasets

    number = 0
    try:
        rows = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        short = [name for name, kind in (rows.features or {}).items() if getattr(kind, "dtype", "") == "float32"]
        for row in rows:
            number += 1
            # 0.1 of 32 bits is 0.10000000149 in 64: the fewest digits that name the number are what was meant
            row |= {name: float(str(np.float32(row[name]))) for name in short if row[name] is not None}
            yield Record(f"{path}: record {number}", row)
    except Exception as error:  # pyarrow's and datasets' own, of many types
        cause = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: cannot be read as Parquet after record {number}: {cause}") from error


def _is_array(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _parse(raw: bytes, place: str) -> Any:
    try:
        return json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_distinct, parse_float=WrittenNumber.read)
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8 text: byte {error.start + 1} is 0x{raw[error.start]:02x}") from None
    except json.JSONDecodeError as error:
        where = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{place}: not valid JSON: {error.msg} at {where}") from None
    except RecursionError:
        raise UserError(f"{place}: not valid JSON: brackets nested too deeply") from None
    except ValueError as error:  # ours, and Python's of integers beyond 4,300 digits
        raise UserError(f"{place}: not valid JSON: {str(error)[:200]}") from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two values under one name: nobody can say which one is meant."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"field {next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return fields


def _record(place: str, value: Any) -> Record | UserError:
    if isinstance(value, dict):
        return Record(place, value)
    return UserError(f"{place}: expected a JSON object with the fields of a problem, found {str(value)[:60]!r}")


def read_hub(path: str, subset: str, split: str, mend: str) -> Iterator[Record]:
    """Records of a hub dataset. Raises UserError, ending with `mend`, when it cannot be loaded."""
    import datasets

    name = f"{path} ({subset + ', ' if subset else ''}{split})"
    try:
        rows = datasets.load_dataset(path, subset or None, split=split)
    except Exception as error:  # whatever the network, the hub or a dataset's own files come up with
        raise UserError(f"{name}: cannot be loaded from the hub: {first_line(error)}; {mend}") from error
    for number, row in enumerate(rows, 1):
        yield Record(f"{name}: record {number}", row)


def first_line(error: BaseException) -> str:
    """The first line of what an error, or its cause, says; an assertion without a message shows the condition that
    failed."""
    text = str(error.__cause__ or error).strip()
    if not text and error.__traceback__:
        context = inspect.getinnerframes(error.__traceback__)[-1].code_context
        text = (context or [""])[0].strip()
    return (text or type(error).__name__).splitlines()[0]
