"""Sources in: JSONL, JSON, Parquet and CSV files and hub datasets as items, whatever their fields are called."""

from __future__ import annotations

import csv
import glob
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ulorl.data.clean.record import Item
from ulorl.data.clean.settings import SourceSettings
from ulorl.data.files import Record, expand, read_hub, read_records
from ulorl.errors import UserError, bad_character

QUESTIONS = ("problem", "question", "prompt", "input", "instruction")
ANSWERS = (
    "reward_model.ground_truth.target", "reward_model.ground_truth", "ground_truth", "final_answer", "answer",
    "expected_answer", "target", "solution", "output",
)  # fmt: skip
IDS = ("id", "unique_id", "uuid", "problem_id")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Unreadable:
    """A record that cannot become an item, by the place that the message names."""

    source: str
    number: int
    message: str


@dataclass(frozen=True)
class Source:
    name: str
    path: str
    settings: SourceSettings


def sources(paths: Sequence[str], settings: Mapping[str, SourceSettings]) -> list[Source]:
    """What is to be read, in the order given: `paths` from the command line, then the tables that have a path of their
    own. A path takes the settings of the table by its name (a file's without its ending), or by the path itself.

    Raises UserError for a path without files, and for a table that belongs to no source.
    """
    found: list[Source] = []
    for path in paths:
        if path in settings and settings[path].path:
            found.append(Source(path, settings[path].path, settings[path]))
            continue
        for file in _files(path, settings.get(path, SourceSettings())):
            name = Path(file).stem if file != path or os.path.exists(path) else path
            chosen = settings.get(path) or settings.get(name) or SourceSettings()
            found.append(Source(_unlike(name, found), file, chosen))
    named = {source.name for source in found} | set(paths)
    for name, table in settings.items():
        if name not in named:
            if not table.path:
                known = ", ".join(sorted(named)) or "none"
                raise UserError(f"sources.{name}: no source of this name, and it has no path; the sources are {known}")
            found.append(Source(name, table.path, table))
    if not found:
        raise UserError("no source to clean: name files, glob patterns or hub datasets, or give sources.NAME.path")
    return found


def _files(path: str, settings: SourceSettings) -> list[str]:
    if settings.kind == "hub" or (settings.kind == "auto" and _is_hub(path)):
        return [path]
    try:
        return [str(file) for file in expand(path)]
    except UserError as error:
        what = str(error).removeprefix("data.path=")
        raise UserError(f"source {what}; a hub dataset is named owner/name") from None


def _is_hub(path: str) -> bool:
    plain = _HUB_NAME.fullmatch(path) and not path.endswith((".jsonl", ".json", ".parquet", ".csv"))
    return bool(plain) and not os.path.exists(path) and not glob.glob(path) and not os.path.isdir(path.split("/")[0])


def _unlike(name: str, found: Sequence[Source]) -> str:
    """The name, or with a number, so that sources can be told apart."""
    taken = {source.name for source in found}
    return next(n for n in chain([name], (f"{name}-{i}" for i in range(2, len(found) + 3))) if n not in taken)


def read_source(source: Source, *, with_answers: bool = True) -> Iterator[Item | Unreadable]:
    """The items of a source, their ids `source/own id`, distinct. with_answers: False for evaluation sets, whose
    references are not needed. Raises UserError when the source as a whole cannot be read."""
    fields: dict[str, str] = {}
    seen: dict[str, int] = {}
    for number, record in enumerate(_records(source), 1):
        if isinstance(record, UserError):
            yield Unreadable(source.name, number, str(record))
            continue
        try:
            yield _item(record, source, number, fields, seen, with_answers)
        except UserError as error:
            yield Unreadable(source.name, number, str(error))


def _item(
    record: Record, source: Source, number: int, fields: dict[str, str], seen: dict[str, int], with_answers: bool
) -> Item:
    """fields: the names found in the first record, which hold for the source; seen: how often an id was there."""
    settings = source.settings
    if not fields:
        fields["question"] = settings.question or _first(record, QUESTIONS, source.name, "question")
        fields["answer"] = settings.answer or (_first(record, ANSWERS, source.name, "answer") if with_answers else "")
        fields["id"] = settings.id or next((name for name in IDS if record.fields.get(name) is not None), "")
    question = _text(record, fields["question"], f"sources.{source.name}.question")
    answer = _text(record, fields["answer"], f"sources.{source.name}.answer") if with_answers else ""
    if settings.answer_after and with_answers:
        _, marker, answer = answer.rpartition(settings.answer_after)
        if not marker:
            raise UserError(f"{record.place}: field {fields['answer']!r} lacks {settings.answer_after!r}")
    own = str(number)
    if fields["id"] and (settings.id or _lookup(record.fields, fields["id"]) is not None):
        own = str(_value(record, fields["id"], f"sources.{source.name}.id"))
    seen[own] = seen.get(own, 0) + 1
    name = f"{source.name}/{own}" + (f"#{seen[own]}" if seen[own] > 1 else "")
    kept = {key: _value(record, key, f"sources.{source.name}.keep") for key in settings.keep}
    for text in (name, question, answer):
        if where := bad_character(text):
            raise UserError(f"{record.place}: {where}")
    try:
        meta = json.dumps(kept, ensure_ascii=False, sort_keys=True, default=str)
        meta.encode()
    except (ValueError, UnicodeEncodeError) as error:
        raise UserError(f"{record.place}: a field of sources.{source.name}.keep cannot be stored: {error}") from None
    return Item(name, question, answer, source.name, record.place, question, answer, meta=meta)


def _records(source: Source) -> Iterator[Record | UserError]:
    settings = source.settings
    if settings.kind == "hub" or (settings.kind == "auto" and _is_hub(source.path)):
        yield from _hub(source)
        return
    for file in expand(source.path):
        yield from _csv(file) if file.suffix == ".csv" else read_records(file)


def _csv(path: Path) -> Iterator[Record | UserError]:
    """Every cell as text, 007 as 007, which `datasets` would read as a number."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines, strict=True)
            for number, row in enumerate(rows, 1):
                place = f"{path}: record {number}"
                whole = None not in row and None not in row.values()
                yield Record(place, row) if whole else UserError(f"{place}: more or fewer cells than the header names")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV: {error}") from error


def _hub(source: Source) -> Iterator[Record]:
    settings = source.settings
    return read_hub(source.path, settings.subset, settings.split, f"check sources.{source.name} and the network")


def _first(record: Record, names: Sequence[str], source: str, key: str) -> str:
    """The first usual name that the record has with something in it."""
    for name in names:
        if isinstance(_lookup(record.fields, name), str | int | float | list):
            return name
    there = ", ".join(map(str, record.fields)) or "none"
    raise UserError(
        f"{record.place}: no field is usual for the {key}: give sources.{source}.{key}; there are {there[:300]}"
    )


def _lookup(value: Any, name: str) -> Any:
    """A field by its name, or by a dotted path; None when it is not there."""
    if isinstance(value, Mapping) and name in value:
        return value[name]
    for part in name.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def _value(record: Record, name: str, key: str) -> Any:
    value = _lookup(record.fields, name)
    if value is None:
        there = ", ".join(map(str, record.fields)) or "none"
        raise UserError(f"{record.place}: no field {name!r}, or nothing in it ({key}); the fields are {there[:300]}")
    return value


def _text(record: Record, name: str, key: str) -> str:
    """Text or a number; of a conversation the last message of the user, of a list with one entry that entry; nothing of
    null, which is for step `normalise` to drop."""
    if name in record.fields and record.fields[name] is None:
        return ""
    value = _value(record, name, key)
    if isinstance(value, list) and value and all(isinstance(message, Mapping) for message in value):
        said = [message.get("content") for message in value if message.get("role", "user") == "user"]
        value = said[-1] if said else None
    elif isinstance(value, list) and len(value) == 1:
        value = value[0]
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not (number or isinstance(value, str)):
        shown = json.dumps(value, default=str, ensure_ascii=False)[:80]
        raise UserError(f"{record.place}: field {name!r} is {shown}, expected text or a number ({key})")
    return str(value)
