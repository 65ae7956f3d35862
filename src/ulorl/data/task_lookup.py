"""Finds a task by its name: one of the package, or a class of the user's in a module or a file."""

from __future__ import annotations

import importlib.util
import os
import sys
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from ulorl.common.importing import imported_attribute
from ulorl.data.task_definition import TaskDefinition, refuse_held_out
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError, one_line
from ulorl.types import Problem

BUILT_IN = {
    "countdown": "ulorl.data.countdown:Countdown",
    "sorting": "ulorl.data.sorting:Sorting",
    "maze": "ulorl.data.maze:Maze",
}


@lru_cache
def find_task(name: str) -> TaskDefinition:
    """Return the task that `name` names: one of BUILT_IN, `module:Class`, `file.py:Class`, or `file.py` with one task.

    Raises UserError when there is none.
    """
    try:
        found = _found(name)
        task = found() if isinstance(found, type) and issubclass(found, TaskDefinition) else found
    except LookupError as error:
        raise _refusal(name, str(error)) from None
    except Exception as error:  # a TypeError: an abstract class
        why = str(error) if isinstance(error, TypeError) else f"its __init__ raised {one_line(error)}"
        raise _refusal(name, why) from error
    if not isinstance(task, TaskDefinition):
        raise _refusal(
            name, f"is a {type(task).__name__}, not a class derived from ulorl.data.task_definition.DrawnTask"
        )
    return task


def task_problems(
    name: str, size: int, seed: int, settings: dict[str, Any], *, held_out: bool = False
) -> list[Problem]:
    """Return `size` distinct problems of a task, from which `reward.kind=task` finds the task again.

    Raises UserError for an unknown task or setting, and when there are fewer problems.
    """
    refuse_held_out(f"task {name!r}", settings)
    texts = find_task(name).problems(size, seed, held_out=held_out, **settings)
    return [Problem(id=f"{name}-{text}", prompt=text, meta={"task": name}) for text in texts]


def _found(name: str) -> Any:
    if name in BUILT_IN:
        return imported_attribute(BUILT_IN[name])
    place, _, attribute = name.partition(":")
    if place.endswith(".py"):
        members = _members(Path(place))
        if attribute in members:
            return members[attribute]
        tasks = [value for value in members.values() if _is_task(value, members["__name__"])]
        if attribute or len(tasks) != 1:
            raise LookupError(f"it has {len(tasks)} tasks; name one of them as {place}:Class")
        return tasks[0]
    if not (place and attribute):
        raise LookupError(f"{_meant(name)}expected {', '.join(BUILT_IN)}, module:Class, or a Python file")
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # an installed command does not look into the folder it is started in
    return imported_attribute(name)


def _meant(name: str) -> str:
    near = [f"{name}.py"] if Path(f"{name}.py").is_file() else get_close_matches(name, BUILT_IN, 1)
    return f"did you mean {near[0]}? " if near else ""


def _members(path: Path) -> dict[str, Any]:
    """The names that a Python file defines or imports."""
    name = str(path)  # no name of a module that is imported elsewhere
    if not os.path.exists(path):
        where = "" if path.is_absolute() else f"; a path begins in {Path.cwd()}"
        raise LookupError(f"no such file{where}")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise LookupError("no Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise LookupError(f"cannot be imported ({type(error).__name__}: {error})") from error
    return vars(module)


def _is_task(value: Any, module: str) -> bool:
    """Whether a class is a task that the file defines itself, not one that it imports."""
    return isinstance(value, type) and issubclass(value, TaskDefinition) and value.__module__ == module


def _refusal(name: str, why: str) -> UserError:
    return UserError(f"task {name!r}: {why}", code=ErrorCode.DATA_GENERATOR, key="data.task")
