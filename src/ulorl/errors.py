"""Errors that a user can fix: a bad configuration, data file, model folder or run folder.

The command line prints such an error without a traceback and exits with code 2. Each error carries a stable code
(`error_codes.ErrorCode`) and its place as fields, so that programs and tests need not read the wording:

    UserError
        CombinedError          several errors, reported together
        EngineMismatch         engine and learner do not agree about the weights
        Diverged               losses that are not finite
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from ulorl.error_codes import ErrorCode

MESSAGES = 10  # of many faults of one kind, so many are listed


class UserError(Exception):
    """An error that says what is wrong, where, and how to fix it.

    code: what kind of error it is. file: the path of the file or folder. key: the dotted key of the configuration, or
    the option of a command. record: the place of a record, for example `problems.jsonl:3`. "" where there is none.
    """

    def __init__(
        self,
        message: str,
        *,
        code: ErrorCode,
        file: str | Path = "",
        key: str = "",
        record: str = "",
    ) -> None:
        super().__init__(message)
        self.code, self.file, self.key, self.record = code, str(file), key, record

    def __reduce__(self) -> tuple[object, ...]:
        """Let the error be pickled: processes of a cluster raise it in the process that called them."""
        return _restored, (type(self), str(self), self.__dict__)

    def each(self) -> Iterator[UserError]:
        """Yield the single errors: this one, or the parts of a combined error."""
        yield self


def _restored(kind: type[UserError], message: str, fields: dict[str, object]) -> UserError:
    error = kind.__new__(kind, message)
    error.__dict__.update(fields)
    return error


class EngineMismatch(UserError):  # noqa: N818
    """Engine and learner disagree about the weights; restarting the engine would not help."""


class Diverged(UserError):  # noqa: N818
    """Losses were not finite several times in a row; a setting has to change before training can continue."""


class CombinedError(UserError):
    """Several errors, reported together. Its code, file, key and record are those of the first one.

    text: the message, for parts that are shown as one; "" for the messages of the parts, one after the other.
    """

    def __init__(self, parts: Sequence[UserError], *, text: str = "") -> None:
        first = parts[0]
        message = text or "\n\n".join([f"{len(parts)} things are wrong", *map(str, parts)])
        super().__init__(message, code=first.code, file=first.file, key=first.key, record=first.record)
        self.parts, self.has_own_text = tuple(parts), bool(text)

    def each(self) -> Iterator[UserError]:
        """Yield the parts."""
        for part in self.parts:
            yield from part.each()


class ErrorCollector:
    """Gathers the UserErrors of several `with` blocks, so that all are reported at once.

    Names that a failed block should have assigned do not exist: call `raise_errors` before they are used.
    """

    def __init__(self) -> None:
        self._found: list[UserError] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: TracebackType | None) -> bool:
        if isinstance(error, UserError):
            if isinstance(error, CombinedError) and not error.has_own_text:
                self._found += error.parts
            else:
                self._found.append(error)
        return isinstance(error, UserError)

    def raise_errors(self) -> None:
        """Raise what was found: a single error as it was raised, several as one CombinedError."""
        if len(self._found) == 1:
            raise self._found[0]
        if self._found:
            raise CombinedError(self._found)


def listing(faults: Sequence[object]) -> str:
    """Return the first of many faults as indented lines, and how many more there are."""
    more = [f"and {len(faults) - MESSAGES} more"] if len(faults) > MESSAGES else []
    return "\n".join(f"  {line}" for line in [*map(str, faults[:MESSAGES]), *more])


def bad_character(text: str) -> str | None:
    """Return what makes a text impossible to store or encode, None for a usable one."""
    if "\0" in text:
        return f"holds a NUL character at position {text.index(chr(0)) + 1}"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"is not Unicode text (half of a surrogate pair at position {error.start + 1})"
    return None


def one_line(error: BaseException) -> str:
    """Describe an exception of another library on one line: its type and the first 200 characters of its message."""
    return f"{type(error).__name__}: {(' '.join(str(error).split()) or 'no message')[:200]}"


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or the name of its type when it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def name_some(names: Sequence[str], count: int = 3) -> str:
    """Name the first few of many names, for a message."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
