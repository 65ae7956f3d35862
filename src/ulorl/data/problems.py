"""Loads the problems of a run: from files, from the hub, from generators.

Nothing here knows a tokenizer; `data.prompts` encodes what is loaded here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TypeAlias

from ulorl.config.data_config import (
    CountdownDataConfig,
    DataConfig,
    FilesDataConfig,
    HubDataConfig,
    ReasoningGymDataConfig,
    TaskDataConfig,
)
from ulorl.data.problem_records import problem_of_record
from ulorl.data.record_files import Record, expand_pattern, read_hub, read_records
from ulorl.error_codes import ErrorCode
from ulorl.errors import CombinedError, UserError, listing
from ulorl.types import Problem

_RecordSource: TypeAlias = FilesDataConfig | HubDataConfig
_log = logging.getLogger(__name__)


def load_problems(data: DataConfig, *, held_out: bool = False) -> list[Problem]:
    """Return the problems that `data` describes, in a fixed order, with distinct ids.

    held_out: take a generator's held-out side, which shares no problem with its training side (`data.problem_keys`).
    Files and hub datasets have no sides: there `data` itself names another file or split. Raises UserError naming the
    file and record, or the task and setting, that is wrong.
    """
    return load_located(data, held_out=held_out)[0]


def load_located(data: DataConfig, *, held_out: bool = False) -> tuple[list[Problem], dict[str, str]]:
    """Return the problems as `load_problems` does, and by id the place (file and line) of each that has one."""
    if isinstance(data, CountdownDataConfig):
        from ulorl.data import countdown
        from ulorl.data.task_definition import refuse_held_out

        refuse_held_out("data.kind=countdown", data.settings)
        return countdown.problems(data.size, data.seed, held_out=held_out, **data.settings), {}
    if isinstance(data, TaskDataConfig):
        from ulorl.data.task_lookup import task_problems

        return task_problems(data.task, data.size, data.seed, data.settings, held_out=held_out), {}
    if isinstance(data, ReasoningGymDataConfig):
        from ulorl.data.reasoning_gym_problems import generate_problems

        return generate_problems(data, held_out=held_out), {}
    if isinstance(data, HubDataConfig):
        fix = "check data.path, data.subset, data.split, data.revision and the network, or use data.kind=files"
        records: Iterable[Record | UserError] = read_hub(
            data.path, data.subset, data.split, data.revision, key="data.path", fix=fix
        )
    else:
        records = chain.from_iterable(map(read_records, expand_pattern(data.path, "data.path")))
    return _first_good(records, data)


def source_of(data: DataConfig) -> str:
    """Return the name of a source in messages: its path, or the kind of generator."""
    return data.path if isinstance(data, _RecordSource) else f"data.kind={data.kind}"


def leave_out(errors: Sequence[UserError], data: DataConfig) -> None:
    """Do with bad records what `data.bad` says: log a warning and leave them out, or raise them as one UserError."""
    if errors and data.bad == "refuse":
        fix = "bad records; fix them, or leave them out with data.bad=skip"
        raise CombinedError(errors, text=f"{source_of(data)}: {fix}:\n{listing(errors)}")
    if errors:
        _log.warning("%s: %d bad records left out:\n%s", source_of(data), len(errors), listing(errors))


def _first_good(records: Iterable[Record | UserError], data: _RecordSource) -> tuple[list[Problem], dict[str, str]]:
    """The problems of the first good records, `data.size` of them or all, and their places by id."""
    problems: list[Problem] = []
    places: dict[str, str] = {}
    bad: list[UserError] = []
    for record in records:
        try:
            if isinstance(record, UserError):
                raise record
            problem = problem_of_record(record, data)
            if problem.id in places:
                raise record.error(f"its id {problem.id!r} is already that of {places[problem.id]}; ids must differ")
        except UserError as error:
            bad.append(error)
            continue
        places[problem.id] = record.place
        problems.append(problem)
        if len(problems) == data.size:
            break
    leave_out(bad, data)
    what = ""
    if not problems:
        what = f"holds no {'good ' if bad else ''}records"
    elif len(problems) < data.size:
        what = f"holds {len(problems)} problems, fewer than data.size={data.size}; 0 takes all"
    if what:
        key = "data.size" if problems else "data.path"
        raise UserError(f"{data.path}: {what}", code=ErrorCode.DATA_TOO_FEW, file=data.path, key=key)
    return problems, places
