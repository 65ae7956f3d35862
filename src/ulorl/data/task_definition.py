"""What a generated task consists of: problems, the words of their texts, demonstrations and a checker.

`ulorl tiny make TASK` trains a tiny model on the demonstrations; `data.kind=task` and `reward.kind=task` train any
model on its own outputs. A task of yours is a subclass of `DrawnTask` in a file of yours, as in
docs/own_task.md.
"""

from __future__ import annotations

import inspect
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from traceback import extract_tb
from typing import Any

from ulorl.data.problem_keys import is_held_out
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError, bad_character, one_line
from ulorl.rng import Stream, generator

MOST_MISSES = 2000  # draws in a row that give no new problem: then there are too few


class TaskDefinition(ABC):
    """A generated task. Problems are texts without the newline that ends a prompt."""

    words: Sequence[str]  # every word of the problems and outputs: numbers, and single characters that are no digits

    @abstractmethod
    def problems(self, size: int, seed: int, /, *, held_out: bool = False, **settings: Any) -> list[str]:
        """Return `size` distinct problems of one side, the same for the same arguments.

        Training and held-out problems never overlap. Raises UserError for an unknown or impossible setting, and when
        there are fewer than `size` problems.
        """

    @abstractmethod
    def training_problems(self, size: int, rng: random.Random, /, **settings: Any) -> list[str]:
        """Return `size` problems of the training side, drawn with replacement, for the warm-up of a model."""

    @abstractmethod
    def demonstrate(self, problem: str, rng: random.Random) -> str:
        """Return an output that answers the problem correctly: what supervised training imitates."""

    @abstractmethod
    def check(self, problem: str, output: str) -> bool:
        """Return whether the output, any text without special tokens, answers the problem correctly."""


class DrawnTask(TaskDefinition):
    """A task whose problems are drawn one at a time. A subclass has `words`, `draw`, `demonstrate` and `check`."""

    @abstractmethod
    def draw(self, rng: random.Random, *_: Any, **settings: Any) -> str:
        """Return a random problem. Keyword arguments are the settings of the task; ValueError or TypeError refuses a
        value. With `**settings` every name is taken."""

    def key(self, problem: str) -> str:
        """Return a text that is equal for problems that a model should not see on both sides. Default: the problem."""
        return problem

    def problems(self, size: int, seed: int, /, *, held_out: bool = False, **settings: Any) -> list[str]:
        """Return `size` distinct problems of one side, in the order in which they are drawn."""
        drawn = self._drawn(generator(Stream.TASK, seed), held_out, settings)
        found: dict[str, None] = {}
        misses = 0
        while len(found) < size:
            problem = next(drawn)
            misses = misses + 1 if problem in found else 0
            found[problem] = None
            if misses == MOST_MISSES:
                side = "held-out" if held_out else "training"
                text = (
                    f"{type(self).__name__}: {size} {side} problems were asked for, but after {len(found)} of them "
                    f"{MOST_MISSES} draws in a row gave no new one"
                )
                raise UserError(text, code=ErrorCode.DATA_TOO_FEW, key="data.size")
        return list(found)

    def training_problems(self, size: int, rng: random.Random, /, **settings: Any) -> list[str]:
        """Return `size` problems of the training side, drawn with replacement."""
        return list(islice(self._drawn(rng, False, settings), size))

    def _drawn(self, rng: random.Random, held_out: bool, settings: Mapping[str, Any]) -> Iterator[str]:
        """Yield problems of one side without end."""
        _check_names(self, settings)
        misses = 0
        while misses < MOST_MISSES:
            with calling(self, "draw"):
                try:
                    problem = checked_text(self, "draw", self.draw(rng, **settings))
                except (TypeError, ValueError) as error:
                    raise _refusal(self, settings, error) from error
            with calling(self, "key"):
                key = checked_text(self, "key", self.key(problem))
            misses += 1
            if is_held_out(key) == held_out:
                misses = 0
                yield problem
        side = "held-out" if held_out else "training"
        text = f"{type(self).__name__}: {MOST_MISSES} draws in a row gave no {side} problem; widen its settings"
        raise UserError(text, code=ErrorCode.DATA_TOO_FEW, key="data.settings")


_RETURNS = {
    "draw": "the text of a problem, a str",
    "key": "a text that is equal for problems on the same side, a str",
    "demonstrate": "an output that answers the problem correctly, a str",
    "check": "whether the output is right, True or False",
}


@contextmanager
def calling(task: TaskDefinition, method: str) -> Iterator[None]:
    """Call a method of a task, which may be the user's code, in the block. What it raises becomes a UserError that
    names the method, its line and what it should return."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise task_fault(task, method, f"raised {one_line(error)}{_line_of(task, method, error)}") from error


def checked_text(task: TaskDefinition, method: str, found: object) -> str:
    """Return what a method of a task returned. Raises UserError when it is no text, or one that cannot be encoded."""
    if not isinstance(found, str):
        raise task_fault(task, method, f"returned {found!r:.100}")
    if bad := bad_character(found):
        raise task_fault(task, method, f"returned a text that {bad}")
    return found


def refuse_held_out(source: str, settings: Mapping[str, Any]) -> None:
    """Raise UserError when `settings` has the name of the argument that chooses a generator's side."""
    if "held_out" in settings:
        text = (
            f"{source}: a setting cannot have the name held_out; training takes the training side, and evaluation the "
            "held-out side"
        )
        raise UserError(text, code=ErrorCode.DATA_GENERATOR, key="data.settings.held_out")


def task_fault(task: TaskDefinition, method: str, what: str) -> UserError:
    """Return the error of a method that did `what`: it names the method, its line and what it should return."""
    file, line = _place(task, method)
    text = f"{type(task).__name__}.{method} ({Path(file).name}, line {line}) {what}; it must return {_RETURNS[method]}"
    return UserError(text, code=ErrorCode.DATA_GENERATOR, file=file, key="data.task")


def _place(task: TaskDefinition, method: str) -> tuple[str, int]:
    """Return the file of a method, and the line at which it begins."""
    code = inspect.unwrap(getattr(type(task), method)).__code__
    return code.co_filename, code.co_firstlineno


def _line_of(task: TaskDefinition, method: str, error: Exception) -> str:
    """Return the innermost line of the method's file at which an exception passed; "" when there is none."""
    file, _ = _place(task, method)
    lines = [at.lineno for at in extract_tb(error.__traceback__) if at.filename == file]
    return f" ({Path(file).name}, line {lines[-1]})" if lines else ""


def _check_names(task: DrawnTask, settings: Mapping[str, Any]) -> None:
    parameters = list(inspect.signature(task.draw).parameters.values())[1:]  # the first is the generator
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters)
    known = [one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    for name in settings:
        if name not in known and not takes_any:
            text = f"{type(task).__name__}: unknown setting {name}; it has {', '.join(known) or 'none'}"
            raise UserError(text, code=ErrorCode.DATA_GENERATOR, key=f"data.settings.{name}")


def _refusal(task: DrawnTask, settings: Mapping[str, Any], error: TypeError | ValueError) -> UserError:
    """Return what `draw` raised as an error that names the task, its settings and the message. Without settings the
    task itself is wrong. A TypeError may come from deep inside: the line of `draw` is named too."""
    name, given = type(task).__name__, ", ".join(f"{key}={value!r}" for key, value in settings.items())
    text = str(error)
    if isinstance(error, TypeError):
        text = f"TypeError: {text}{_line_of(task, 'draw', error)}"
    if given:
        return UserError(f"{name} refuses {given}: {text}", code=ErrorCode.DATA_GENERATOR, key="data.settings")
    return UserError(f"{name} cannot draw a problem: {text}", code=ErrorCode.DATA_GENERATOR, key="data.task")
