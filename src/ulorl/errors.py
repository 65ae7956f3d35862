"""The one exception a user causes: bad configuration, data or model folder. The command line prints it without a
traceback and exits with code 2."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

MESSAGES = 10  # faults of one kind named one by one


class UserError(Exception):
    """Says what is wrong, where (file, key or record) and how to mend it."""


class Disagreement(UserError):  # noqa: N818 - what it is, not that it is an error
    """Engine and learner do not agree: making the engine anew would change nothing."""


class CombinedError(UserError):
    """Several of them, told together."""

    def __init__(self, parts: Sequence[UserError]) -> None:
        super().__init__("\n\n".join([f"{len(parts)} things are wrong", *map(str, parts)]))
        self.parts = tuple(parts)


class Faults:
    """Gathers the UserErrors of several `with` blocks, so that all are told at once.

    What a block that failed should have assigned does not exist: call `stop` before such names are used.
    """

    def __init__(self) -> None:
        self._found: list[UserError] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: TracebackType | None) -> bool:
        if isinstance(error, UserError):
            self._found += error.parts if isinstance(error, CombinedError) else [error]
        return isinstance(error, UserError)

    def stop(self) -> None:
        """Raises UserError when there was any, the only one as it was raised."""
        if len(self._found) == 1:
            raise self._found[0]
        if self._found:
            raise CombinedError(self._found)


def listing(faults: Sequence[object]) -> str:
    """The first of many faults, an indented line each, and how many more there are."""
    more = [f"and {len(faults) - MESSAGES} more"] if len(faults) > MESSAGES else []
    return "\n".join(f"  {line}" for line in [*map(str, faults[:MESSAGES]), *more])


def bad_character(text: str) -> str | None:
    """What makes a text unfit to be stored or encoded; None for a fit one."""
    if "\0" in text:
        return f"holds a NUL character at position {text.index(chr(0)) + 1}"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"is not Unicode text (half of a surrogate pair at position {error.start + 1})"
    return None
