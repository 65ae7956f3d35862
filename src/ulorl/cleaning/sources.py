"""Reads JSONL, JSON, Parquet and CSV files and hub datasets as items, with any field names."""

from __future__ import annotations

import glob
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any

from ulorl.cleaning.cleaning_config import SourceConfig
from ulorl.cleaning.items import Item
from ulorl.cleaning.option_fields import record_options
from ulorl.common.key_paths import look_up
from ulorl.data.record_files import ENDINGS, Record, decimal, expand_pattern, is_number, read_hub, read_records
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError, bad_character

QUESTIONS = ("problem", "question", "prompt", "input", "instruction")
ANSWERS = (
    "reward_model.ground_truth.target", "reward_model.ground_truth", "ground_truth", "final_answer", "answer",
    "expected_answer", "answerKey", "answer_key", "correct_answer", "target", "solution", "output",
)  # fmt: skip
IDS = ("id", "unique_id", "uuid", "problem_id")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Unreadable:
    """A record that cannot become an item. error: names the place of the record."""

    source: str
    number: int
    error: UserError

    @property
    def message(self) -> str:
        """Return the error's message as text that can be stored: it may quote characters that cannot."""
        return str(self.error).encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True)
class Source:
    """A file, a glob pattern or a hub dataset, with its settings."""

    name: str
    path: str
    settings: SourceConfig


def list_sources(paths: Sequence[str], settings: Mapping[str, SourceConfig]) -> list[Source]:
    """Return what is to be read, in the order given: `paths`, then the tables of `settings` that have a path.

    A path takes the settings of the table by its name (a file's without its ending), or by the path itself. Raises
    UserError for a path without files, and for a table that belongs to no source.
    """
    found: list[Source] = []
    for path in paths:
        if path in settings and settings[path].path:
            found.append(Source(path, settings[path].path, settings[path]))
            continue
        for file in _files(path, settings.get(path, SourceConfig())):
            name = Path(file).stem if file != path or os.path.exists(path) else path
            chosen = settings.get(path) or settings.get(name) or SourceConfig()
            found.append(Source(_unlike(name, found), file, chosen))
    named = {source.name for source in found} | set(paths)
    for name, table in settings.items():
        if name not in named:
            if not table.path:
                known = ", ".join(sorted(named)) or "none"
                text = f"sources.{name}: no source has this name, and it has no path; the sources are {known}"
                raise UserError(text, code=ErrorCode.CONFIG_UNKNOWN_KEY, key=f"sources.{name}")
            found.append(Source(name, table.path, table))
    if not found:
        text = "no source to clean: name files, glob patterns or hub datasets, or give sources.NAME.path"
        raise UserError(text, code=ErrorCode.CONFIG_MISSING_KEY, key="sources")
    return found


def _files(path: str, settings: SourceConfig) -> list[str]:
    if settings.kind == "hub" or (settings.kind == "auto" and _is_hub(path)):
        return [path]
    try:
        return [str(file) for file in expand_pattern(path)]
    except UserError as error:
        raise UserError(
            f"source {error}; the name of a hub dataset is owner/name", code=error.code, file=error.file
        ) from None


def _is_hub(path: str) -> bool:
    plain = _HUB_NAME.fullmatch(path) and not path.endswith(ENDINGS)
    return bool(plain) and not os.path.exists(path) and not glob.glob(path) and not os.path.isdir(path.split("/")[0])


def _unlike(name: str, found: Sequence[Source]) -> str:
    """Return the name, with a number where another source has the same name."""
    taken = {source.name for source in found}
    return next(n for n in chain([name], (f"{name}-{i}" for i in range(2, len(found) + 3))) if n not in taken)


def read_source(source: Source, *, with_answers: bool = True) -> Iterator[Item | Unreadable]:
    """Yield the items of a source; their ids are `source/own id`, and distinct.

    with_answers: False for evaluation sets, whose references are not needed. Raises UserError when the source as a
    whole cannot be read, or holds no record.
    """
    seen: dict[str, int] = {}  # how often an id was there
    for number, record in enumerate(_records(source), 1):
        if isinstance(record, UserError):
            yield Unreadable(source.name, number, record)
            continue
        try:
            yield _item(record, source, number, seen, with_answers)
        except UserError as error:
            yield Unreadable(source.name, number, error)


def _item(record: Record, source: Source, number: int, seen: dict[str, int], with_answers: bool) -> Item:
    """The fields are looked for in every record: a source may have its reference in one field here, another there."""
    settings, key = source.settings, f"sources.{source.name}"
    asked = settings.question or _usual(record, QUESTIONS, source.name, "question")
    question = original = _text(record, asked, f"{key}.question")
    answer = answered = ""
    if with_answers:
        answered = settings.answer or _usual(record, ANSWERS, source.name, "answer")
        answer = _text(record, answered, f"{key}.answer")
    if settings.answer_after and with_answers:
        _, marker, answer = answer.rpartition(settings.answer_after)
        if not marker:
            raise record.error(f"field {answered!r} lacks {settings.answer_after!r}", key=f"{key}.answer_after")
    original_answer = answer
    if with_answers and (offered := record_options(record, settings)):
        answer = offered.resolve(record, answered, answer, look_up(record.fields, answered), source.name)
        question = offered.add_to(question)
    changed = ("read",) if (question, answer) != (original, original_answer) else ()
    name = _name(record, source, number, seen)
    for text in (name, question, answer):
        if where := bad_character(text):
            raise record.error(where)
    return Item(
        name, question, answer, source.name, record.place, original, original_answer, changed,
        meta=_meta(record, source), read_from=(asked, answered),
    )  # fmt: skip


def _name(record: Record, source: Source, number: int, seen: dict[str, int]) -> str:
    """`source/own id`; a record without an id has its number."""
    field = source.settings.id or next((name for name in IDS if not is_empty(record.fields.get(name))), "")
    value = _value(record, field, f"sources.{source.name}.id") if field else number
    own = decimal(value) if isinstance(value, float) and math.isfinite(value) else str(value)
    seen[own] = seen.get(own, 0) + 1
    return f"{source.name}/{own}" + (f"#{seen[own]}" if seen[own] > 1 else "")


def _meta(record: Record, source: Source) -> str:
    kept = {key: _value(record, key, f"sources.{source.name}.keep") for key in source.settings.keep}
    try:
        meta = json.dumps(kept, ensure_ascii=False, sort_keys=True, default=str)
        meta.encode()
    except (TypeError, ValueError, RecursionError) as error:
        key = f"sources.{source.name}.keep"
        raise record.error(f"a field of {key} cannot be stored: {error}", key=key) from None
    return meta


def _records(source: Source) -> Iterator[Record | UserError]:
    settings = source.settings
    if settings.kind == "hub" or (settings.kind == "auto" and _is_hub(source.path)):
        key = f"sources.{source.name}"
        records = read_hub(source.path, settings.subset, settings.split, key=key, fix=f"check {key} and the network")
        yield from _some(source.path, records)
        return
    for file in expand_pattern(source.path):
        yield from _some(str(file), read_records(file))


def _some(name: str, records: Iterable[Record | UserError]) -> Iterator[Record | UserError]:
    """All of the records. Raises UserError when there is none: an empty source is a mistake."""
    empty = True
    for record in records:
        empty = False
        yield record
    if empty:
        text = f"{name}: holds no records; remove it from the sources, or write it again"
        raise UserError(text, code=ErrorCode.DATA_TOO_FEW, file=name)


def _usual(record: Record, names: Sequence[str], source: str, key: str) -> str:
    """Return the first usual name whose field is not empty in the record, else the first that the record has."""
    there = [name for name in names if isinstance(look_up(record.fields, name), str | int | float | list | Decimal)]
    if filled := [name for name in there if not is_empty(look_up(record.fields, name))]:
        return filled[0]
    if empty := [name for name in names if name in record.fields and is_empty(record.fields[name])]:
        return empty[0]
    option = f"sources.{source}.{key}"
    what = f"no field has a usual name for the {key}: give {option}; the fields are {record.field_names()}"
    raise record.error(what, key=option)


def is_empty(value: Any) -> bool:
    """Return whether a value is null, an empty cell, or the NaN that pandas writes for either."""
    empty = value is None or value == [] or (isinstance(value, str) and not value.strip())
    return empty or (isinstance(value, float) and math.isnan(value))


def _value(record: Record, name: str, key: str) -> Any:
    value = look_up(record.fields, name)
    if value is None:
        what = f"no field {name!r}, or nothing in it ({key}); the fields are {record.field_names()}"
        raise record.error(what, key=key)
    return value


def _text(record: Record, name: str, key: str) -> str:
    """Text or a number; of a conversation the last message of the user, of a list with one entry that entry.

    Null gives no text; step `normalise` drops it.
    """
    if name in record.fields and is_empty(record.fields[name]):
        return record.fields[name] if isinstance(record.fields[name], str) else ""
    value = _value(record, name, key)
    if isinstance(value, list) and value and all(isinstance(message, Mapping) for message in value):
        said = [message.get("content") for message in value if message.get("role", "user") == "user"]
        value = said[-1] if said else None
    elif isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not (is_number(value) or isinstance(value, str)):
        raise record.wrong(name, value, f"text or a number ({key})", key=key)
    return value if isinstance(value, str) else decimal(value)
