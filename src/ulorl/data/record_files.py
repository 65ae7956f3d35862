"""Records of JSON Lines, JSON, Parquet and CSV files and of hub datasets, one at a time, each with its place.

JSON and CSV are read here line by line because `datasets` guesses one schema for a whole file and cannot say which line
is bad.
"""

from __future__ import annotations

import csv
import glob
import inspect
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from ulorl.common.parquet import read_parquet
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError

TYPED_ENDINGS = (".jsonl", ".json", ".parquet")  # of files whose values are text, numbers, true or false
ENDINGS = (*TYPED_ENDINGS, ".csv")  # of all files that can be read; the values of .csv are all text
_MAX_DIGITS = 4300  # of a whole number, as in Python
_UNREADABLE = ErrorCode.DATA_UNREADABLE


def record_error(place: str, what: str, *, key: str = "", code: ErrorCode = ErrorCode.DATA_BAD_RECORD) -> UserError:
    """Return the error that names a record's place and says what is wrong there.

    key: the configuration key that names the field.
    """
    return UserError(f"{place}: {what}", code=code, key=key, record=place)


@dataclass(frozen=True)
class Record:
    """The fields of one record. place: file.jsonl:12 or `file.parquet: record 12`, counted from 1."""

    place: str
    fields: dict[str, Any]

    def error(self, what: str, *, key: str = "") -> UserError:
        """Return the error that says what is wrong with this record. key: the one that names the field."""
        return record_error(self.place, what, key=key)

    def field_names(self) -> str:
        """Return the names of the fields, for a message."""
        return (", ".join(map(str, self.fields)) or "none")[:300]

    def wrong(self, name: str, value: Any, expected: str, *, key: str = "") -> UserError:
        """Return the error that says what a field of this record holds, and what it should hold."""
        return self.error(f"field {name!r} is {shown(value)}, expected {expected}", key=key)


def shown(value: Any) -> str:
    """Return the start of a value, as JSON, for a message."""
    try:
        return json.dumps(value, default=str, ensure_ascii=False)[:80]
    except (TypeError, ValueError, RecursionError):
        return f"a {type(value).__name__} that JSON cannot hold"


class WrittenNumber(float):
    """A number of a JSON file that keeps its digits there: 2.50, and digits that a float cannot hold."""

    spelling = ""

    @classmethod
    def read(cls, spelling: str) -> WrittenNumber:
        """Return the number that these digits are."""
        number = cls(spelling)
        number.spelling = spelling
        return number


def is_number(value: object) -> bool:
    """Return whether a value can be a reference that `decimal` writes: a finite number and no truth value."""
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (isinstance(value, float | Decimal) and math.isfinite(value))


def decimal(number: float | Decimal) -> str:
    """Return a finite number as text, in the digits of its source and without an exponent, which no reward reads.

    4e-05 becomes 0.00004. Whole numbers lose their point (5 for 5.0, which is how pandas stores 5 in a column with
    gaps), and 0 loses its sign.
    """
    exact = Decimal(getattr(number, "spelling", "") or str(number))
    if not exact:
        return "0"
    if exact == exact.to_integral_value():
        return str(int(exact)) if exact.adjusted() < _MAX_DIGITS else str(exact)
    return f"{exact:f}" if exact.adjusted() > -_MAX_DIGITS else str(exact)


def expand_pattern(pattern: str, key: str = "") -> list[Path]:
    """Return the files that a path or a glob pattern names, sorted.

    key: the configuration key that holds the pattern, for the message. Raises UserError when there are no files.
    """
    path = os.path.expanduser(pattern)  # os.path finds nothing where Path raises: names too long, unknown users
    found = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
    files = [Path(file) for file in found if os.path.isfile(file)]
    if not files:
        what = "is a folder; name its files, for example with *.jsonl" if os.path.isdir(path) else "no such file"
        name = f"{key}={pattern[:300]}" if key else pattern[:300]
        raise UserError(f"{name}: {what}", code=ErrorCode.DATA_NOT_FOUND, file=path, key=key)
    return files


def read_records(path: Path, endings: Sequence[str] = ENDINGS) -> Iterator[Record | UserError]:
    """Yield the records of one file; in the place of a record that cannot be read, the UserError that names it.

    Raises UserError when the file as a whole cannot be read, or its name has none of the `endings`.
    """
    if path.suffix not in endings:
        packed = path.suffix in (".gz", ".bz2", ".xz", ".zst", ".zip")
        fix = "unpack it first" if packed else f"expected a file that ends in {', '.join(endings)}"
        raise _unreadable(path, fix)
    try:
        if path.suffix == ".parquet":
            for number, row in enumerate(read_parquet(path), 1):
                yield Record(f"{path}: record {number}", row)
        elif path.suffix == ".jsonl" or (path.suffix == ".json" and not _is_array(path)):
            yield from _json_lines(path)
        elif path.suffix == ".json":
            yield from _json_array(path)
        else:
            yield from _csv(path)
    except OSError as error:
        raise _unreadable(path, f"cannot be read ({error.strerror or error})") from None


def _csv(path: Path) -> Iterator[Record | UserError]:
    """Yield the records of a file with a header. Every cell stays text: 007 is 007, which `datasets` would read as a
    number."""
    csv.field_size_limit(2**31 - 1)  # the module's own limit of 131,072 characters fails a file without saying where
    number = 0
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
            rows = csv.reader(lines, strict=True)
            header = next(rows, [])
            if doubled := sorted({name for name in header if header.count(name) > 1}):
                shown = ", ".join(map(repr, doubled))[:300]
                raise _unreadable(path, f"the header names {shown} more than once; give every column its own name")
            for row in filter(None, rows):
                number += 1
                yield _row(f"{path}: record {number}", header, row)
    except csv.Error as error:
        place = f"{path}: record {number + 1}"
        raise _unreadable(path, f"cannot be read as CSV: {error}", place) from None


def _unreadable(path: Path, what: str, place: str = "") -> UserError:
    return UserError(f"{place or path}: {what}", code=ErrorCode.DATA_UNREADABLE, file=path, record=place)


def _row(place: str, header: list[str], row: list[str]) -> Record | UserError:
    if len(row) != len(header):
        return record_error(place, f"holds {len(row)} cells, the header names {len(header)}", code=_UNREADABLE)
    for name, cell in zip(header, row, strict=True):
        if any("\udc80" <= character <= "\udcff" for character in cell):  # bytes that are no UTF-8
            what = f"field {name!r} is not UTF-8 text; save the file as UTF-8"
            return record_error(place, what, code=_UNREADABLE)
    return Record(place, dict(zip(header, row, strict=True)))


def _json_lines(path: Path) -> Iterator[Record | UserError]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield _record(f"{path}:{number}", _parse(line.rstrip(), path, f"{path}:{number}"))
                except UserError as error:
                    yield error


def _json_array(path: Path) -> Iterator[Record | UserError]:
    for number, value in enumerate(_parse(path.read_bytes(), path), 1):
        yield _record(f"{path}: record {number}", value)


def _is_array(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _parse(raw: bytes, path: Path, place: str = "") -> Any:
    try:
        return json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_distinct, parse_float=WrittenNumber.read)
    except UnicodeDecodeError as error:
        what = f"not UTF-8 text: byte {error.start + 1} is 0x{raw[error.start]:02x}"
    except json.JSONDecodeError as error:
        where = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        what = f"not valid JSON: {error.msg} at {where}"
    except RecursionError:
        what = "not valid JSON: brackets nested too deeply"
    except ValueError as error:  # ours, and Python's of integers beyond 4,300 digits
        what = f"not valid JSON: {str(error)[:200]}"
    raise _unreadable(path, what, place)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse two values under one name, because it is unknown which one is meant."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"field {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return fields


def _record(place: str, value: Any) -> Record | UserError:
    if isinstance(value, dict):
        return Record(place, value)
    return record_error(
        place, f"expected a JSON object with the fields of a problem, found {str(value)[:60]!r}", code=_UNREADABLE
    )


def read_hub(path: str, subset: str, split: str, revision: str = "", *, key: str, fix: str) -> Iterator[Record]:
    """Yield the records of a hub dataset.

    revision: a commit, tag or branch; "": the newest. key: the configuration key that names the dataset. Raises
    UserError, ending with `fix`, when it cannot be loaded.
    """
    import datasets

    name = f"{path} ({subset + ', ' if subset else ''}{split})"
    try:
        rows = datasets.load_dataset(path, subset or None, split=split, revision=revision or None)
    except Exception as error:  # anything that the network, the hub or a dataset's own files raise
        text = f"{name}: cannot be loaded from the hub: {first_line(error)}; {fix}"
        raise UserError(text, code=ErrorCode.DATA_NOT_FOUND, key=key) from error
    for number, row in enumerate(rows, 1):
        yield Record(f"{name}: record {number}", row)


def first_line(error: BaseException) -> str:
    """Return the first line of the message of an error, or of its cause.

    For an assertion without a message it is the condition that failed.
    """
    text = str(error.__cause__ or error).strip()
    if not text and error.__traceback__:
        context = inspect.getinnerframes(error.__traceback__)[-1].code_context
        text = (context or [""])[0].strip()
    return (text or type(error).__name__).splitlines()[0]
