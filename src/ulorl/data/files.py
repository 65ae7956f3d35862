"""Records of JSON Lines, JSON and Parquet files, one at a time, each with its place for messages.

JSON is read here line by line because `datasets` guesses one schema for a whole file and cannot say which line is bad;
Parquet, which carries its schema, streams through `datasets`.
"""

from __future__ import annotations

import glob
import inspect
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ulorl.errors import UserError


@dataclass(frozen=True)
class Record:
    place: str  # file.jsonl:12 or file.parquet: record 12, counted from 1
    fields: dict[str, Any]


def expand(pattern: str) -> list[Path]:
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
        for row in datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True):
            number += 1
            yield Record(f"{path}: record {number}", row)
    except Exception as error:  # pyarrow's and datasets' own, of many types
        cause = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: cannot be read as Parquet after record {number}: {cause}") from error


def _is_array(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _parse(raw: bytes, place: str) -> Any:
    try:
        return json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_distinct)
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
