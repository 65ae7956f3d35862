"""Errors of code that recipes share, in the terms of `ulorl tiny make`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError, one_line

_OF_TASK = ("data.task", "reward.kind", "reward.max_unscored")  # what they decide for a run the task decides here


@contextmanager
def own_settings() -> Iterator[None]:
    """Raise a UserError of the block with the setting of `ulorl tiny make` in place of the key of a recipe."""
    try:
        yield
    except UserError as error:
        text, key = str(error), error.key
        if error.code is ErrorCode.REWARD_FAILED and error.__cause__:
            text = f"the task's checker fails on answers of the model, at last with {one_line(error.__cause__)}"
        if key in _OF_TASK:
            key = "TASK"
        elif key.partition(".")[0] == "data":
            key = key.removeprefix("data.")
        raise UserError(text, code=error.code, file=error.file, key=key, record=error.record) from error
