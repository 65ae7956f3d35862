"""Records of files and of the hub as problems. Every error names the record's place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ulorl.common.key_paths import look_up
from ulorl.config.data_config import RecordsDataConfig
from ulorl.data.record_files import Record, decimal, is_number
from ulorl.errors import bad_character
from ulorl.types import Problem

_ID_FIELDS = ("id", "unique_id")


def problem_of_record(record: Record, data: RecordsDataConfig) -> Problem:
    """Return the problem in a record, from the fields that `data` names. Raises UserError, which names the record."""
    question = _field(record, data.question, "data.question")
    if not isinstance(question, str):
        raise record.wrong(data.question, question, "text", key="data.question")
    answer = _field(record, data.answer, "data.answer")
    if not (is_number(answer) or isinstance(answer, str)):
        raise record.wrong(data.answer, answer, "text or a number", key="data.answer")
    reference = answer if isinstance(answer, str) else decimal(answer)
    if data.answer_after:
        _, mark, reference = reference.rpartition(data.answer_after)
        if not mark:
            what = f"field {data.answer!r} lacks {data.answer_after!r} (data.answer_after)"
            raise record.error(what, key="data.answer_after")
    for key, name, value in (("data.question", data.question, question), ("data.answer", data.answer, reference)):
        if not value.strip():
            raise record.error(f"field {name!r} holds no text", key=key)
        _check_text(record, name, value, key)
    meta = {name: _field(record, name, "data.keep") for name in data.keep}
    _check_json(meta, record)
    return Problem(_id(record), question, reference.strip(), meta)


def _id(record: Record) -> str:
    """Return the record's own id, or its place when it has none; null is none."""
    for field in _ID_FIELDS:
        value = record.fields.get(field)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
                raise record.wrong(field, value, "text or a whole number")
            _check_text(record, field, str(value))
            return str(value)
    return record.place


def _check_text(record: Record, name: str, value: str, key: str = "") -> None:
    if where := bad_character(value):
        raise record.error(f"field {name!r} {where}", key=key)


def _field(record: Record, name: str, key: str) -> Any:
    """Return a field by its name, or by a dotted path into nested records: `prompt.0.content`."""
    missing = object()
    value = look_up(record.fields, name, missing)
    if value is missing:
        raise record.error(f"no field {name!r} ({key}); the fields are {record.field_names()}", key=key)
    return value


def _check_json(meta: Mapping[str, Any], record: Record) -> None:
    for name, value in meta.items():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except (TypeError, UnicodeEncodeError):
            raise record.wrong(name, value, "JSON values (data.keep)", key="data.keep") from None
