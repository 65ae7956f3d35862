"""Problems in: from files, from the hub, from generators. Every bad record is named with its place.

Nothing here knows a tokenizer; `data.prompts` encodes what is loaded here.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import chain
from typing import Any, TypeAlias

from ulorl.common.key_paths import look_up
from ulorl.config.data_config import (
    CountdownDataConfig,
    DataConfig,
    FilesDataConfig,
    HubDataConfig,
    ReasoningGymDataConfig,
    RecordsDataConfig,
)
from ulorl.data.problem_keys import has_rule, problem_key
from ulorl.data.record_files import Record, decimal, expand_pattern, first_line, is_number, read_hub, read_records
from ulorl.errors import UserError, bad_character, listing
from ulorl.types import Problem

_RecordSource: TypeAlias = FilesDataConfig | HubDataConfig
HELD_OUT_SHARE = 0.2  # of a generator's problems
_log = logging.getLogger(__name__)
_ID_FIELDS = ("id", "unique_id")


def load_problems(data: DataConfig, *, held_out: bool = False) -> list[Problem]:
    """The problems that `data` describes, in a fixed order, with distinct ids.

    held_out: take a generator's held-out side, which shares no problem with its training side (`data.canonical`).
    Files and hub datasets have no sides: there `data` itself names another file or split. Raises UserError naming the
    file and record, or the task and setting, that is wrong.
    """
    return load_located(data, held_out=held_out)[0]


def load_located(data: DataConfig, *, held_out: bool = False) -> tuple[list[Problem], dict[str, str]]:
    """As `load_problems`, with the place (file and line, or record) of each problem that has one, by its id."""
    if isinstance(data, CountdownDataConfig):
        from ulorl.data import countdown

        return countdown.problems(data.size, data.seed, held_out=held_out, **data.settings), {}
    if isinstance(data, ReasoningGymDataConfig):
        return list(_reasoning_gym(data, held_out)), {}
    if isinstance(data, HubDataConfig):
        records: Iterable[Record | UserError] = _hub(data)
    else:
        records = chain.from_iterable(map(read_records, expand_pattern(data.path)))
    return _collect(records, data)


def source_of(data: DataConfig) -> str:
    """Return the name of a source in messages: its path, or the kind of generator."""
    return data.path if isinstance(data, _RecordSource) else f"data.kind={data.kind}"


def leave_out(faults: Sequence[UserError], data: DataConfig) -> None:
    """What `data.bad` says about bad records: a warning when they are left out, else UserError listing them."""
    if faults and data.bad == "refuse":
        mend = "bad records; mend them, or leave them out with data.bad=skip"
        raise UserError(f"{source_of(data)}: {mend}:\n{listing(faults)}")
    if faults:
        _log.warning("%s: %d bad records left out:\n%s", source_of(data), len(faults), listing(faults))


def _collect(records: Iterable[Record | UserError], data: _RecordSource) -> tuple[list[Problem], dict[str, str]]:
    """The problems of the first good records, `data.size` of them or all, and a word on every bad one."""
    problems: list[Problem] = []
    places: dict[str, str] = {}  # by id
    bad: list[UserError] = []
    for record in records:
        try:
            problem = _problem(record, data, places)
        except UserError as error:
            bad.append(error)
            continue
        problems.append(problem)
        if len(problems) == data.size:
            break
    leave_out(bad, data)
    if not problems:
        raise UserError(f"{data.path}: holds no {'good ' if bad else ''}records")
    if len(problems) < data.size:
        raise UserError(f"{data.path}: holds {len(problems)} problems, fewer than data.size={data.size}; 0 takes all")
    return problems, places


def _problem(record: Record | UserError, data: RecordsDataConfig, places: dict[str, str]) -> Problem:
    if isinstance(record, UserError):
        raise record
    question = _field(record, data.question, "data.question")
    if not isinstance(question, str):
        raise UserError(_wrong(record, data.question, question, "text"))
    answer = _field(record, data.answer, "data.answer")
    if not (is_number(answer) or isinstance(answer, str)):
        raise UserError(_wrong(record, data.answer, answer, "text or a number"))
    reference = answer if isinstance(answer, str) else decimal(answer)
    if data.answer_after:
        _, marker, reference = reference.rpartition(data.answer_after)
        if not marker:
            raise UserError(f"{record.place}: field {data.answer!r} lacks {data.answer_after!r} (data.answer_after)")
    for name, value in ((data.question, question), (data.answer, reference)):
        if not value.strip():
            raise UserError(f"{record.place}: field {name!r} holds no text")
        _check_text(record, name, value)
    meta = {name: _field(record, name, "data.keep") for name in data.keep}
    _check_json(meta, record)
    name = _id(record)
    if name in places:
        raise UserError(f"{record.place}: its id {name!r} is already that of {places[name]}; ids must differ")
    places[name] = record.place
    return Problem(name, question, reference.strip(), meta)


def _id(record: Record) -> str:
    """The record's own id, or its place when it has none; null is none."""
    for field in _ID_FIELDS:
        value = record.fields.get(field)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
                raise UserError(_wrong(record, field, value, "text or a whole number"))
            _check_text(record, field, str(value))
            return str(value)
    return record.place


def _check_text(record: Record, name: str, value: str) -> None:
    if where := bad_character(value):
        raise UserError(f"{record.place}: field {name!r} {where}")


def _field(record: Record, name: str, key: str) -> Any:
    """A field by its name, or by a dotted path into nested records: `prompt.0.content`."""
    missing = object()
    value = look_up(record.fields, name, missing)
    if value is missing:
        there = ", ".join(map(str, record.fields)) or "none"
        raise UserError(f"{record.place}: no field {name!r} ({key}); the fields are {there[:300]}")
    return value


def _wrong(record: Record, name: str, value: Any, expected: str) -> str:
    return f"{record.place}: field {name!r} is {json.dumps(value, default=str)[:80]}, expected {expected}"


def _check_json(meta: Mapping[str, Any], record: Record) -> None:
    for name, value in meta.items():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except (TypeError, UnicodeEncodeError):
            raise UserError(_wrong(record, name, value, "JSON values (data.keep)")) from None


def _hub(data: HubDataConfig) -> Iterator[Record]:
    mend = "check data.path, data.subset and data.split and the network, or use data.kind=files"
    return read_hub(data.path, data.subset, data.split, mend)


def _reasoning_gym(data: ReasoningGymDataConfig, held_out: bool) -> Iterator[Problem]:
    """`size` distinct questions of one side, in the order in which the task draws them.

    The side is a stable hash of what the question asks, whatever its words (`data.canonical`), so that sides are
    disjoint for every seed, size and setting. `meta` holds what the scorer needs: task, settings, and the entry as a
    Python literal (JSON would lose its tuples and integer keys).
    """
    dataset = _dataset(data)
    seen: set[str] = set()
    keys: set[str] = set()  # of this side
    if not has_rule(data.task):
        _log.warning("data.task=%s: no rule for what its problems are: only equal questions are kept apart", data.task)
    for index in range(len(dataset)):
        entry = dataset[index]
        question, answer = entry["question"], entry["answer"]
        if question in seen or is_held_out(key := problem_key(data.task, entry)) != held_out:
            continue
        seen.add(question)
        keys.add(key)
        literal = repr(entry)
        if index < 100 and not _survives(entry, literal):
            raise UserError(f"data.task={data.task}: its entries hold values that cannot be stored with a run")
        meta = {"task": data.task, "settings": data.settings, "entry": literal}
        yield Problem(f"{data.task}-{data.seed}-{index}", question, "" if answer is None else str(answer), meta)
        if len(seen) == data.size:
            if held_out:
                _warn_of_few(data, len(keys))
            return
    side = "held-out" if held_out else "training"
    raise UserError(
        f"data.task={data.task}: {len(dataset)} draws with these data.settings gave {len(seen)} distinct {side} "
        f"questions ({len(keys)} problems, each in one or several wordings), fewer than data.size={data.size}; ask for "
        "fewer, or widen the settings"
    )


def _warn_of_few(data: ReasoningGymDataConfig, problems: int) -> None:
    """A word on held-out questions that ask few problems: their accuracy says less than their number suggests."""
    if 2 * problems <= data.size:
        _log.warning(
            "data.task=%s: the %d held-out questions ask only %d problems, in other words or another order; more "
            "problems need wider data.settings",
            data.task, data.size, problems,
        )  # fmt: skip


def is_held_out(key: str) -> bool:
    """Which side of a generator's split the problem with this key is on."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) < HELD_OUT_SHARE * 2**64


def _survives(entry: Mapping[str, Any], literal: str) -> bool:
    try:
        return bool(ast.literal_eval(literal) == entry)
    except (ValueError, SyntaxError):
        return False


def _dataset(data: ReasoningGymDataConfig) -> Any:
    """reasoning-gym's dataset, long enough to draw `data.size` questions of either side from a task with repeats."""
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise UserError('data.kind=reasoning_gym needs reasoning-gym: pip install "ulorl[tasks]"') from None
    if data.task not in DATASETS:
        raise UserError(f"data.task={data.task}: reasoning-gym has no such task{_near(data.task, DATASETS)}")
    names = [f.name for f in dataclasses.fields(DATASETS[data.task][1]) if f.name not in ("seed", "size")]
    for name in data.settings:
        if name not in names:
            raise UserError(f"data.settings.{name}: {data.task} has no such setting{_near(name, names)}")
    draws = 20 * data.size + 200
    try:
        return reasoning_gym.create_dataset(data.task, size=draws, seed=data.seed, **data.settings)
    except (
        AssertionError,
        AttributeError,
        TypeError,
        ValueError,
    ) as error:  # how reasoning-gym's configurations refuse
        raise UserError(f"data.settings: {data.task} refuses {data.settings}: {first_line(error)}") from error


def _near(name: str, names: Iterable[str]) -> str:
    known = list(names)
    near = get_close_matches(name, known, n=3)
    return f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(sorted(known))}"
