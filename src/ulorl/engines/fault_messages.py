"""The messages about faults of engines, which a single engine and a fleet share."""

from __future__ import annotations

import os
import sys
import traceback

from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError


def print_to_stderr(line: str) -> None:
    """Print a line to stderr."""
    print(line, file=sys.stderr)


def described(error: BaseException) -> str:
    """Return in one line what went wrong, and where."""
    lines = str(error).splitlines() or [""]
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {lines[0]}{where}"


def engine_failed(what: str, faults: int, last: str, resume: str) -> UserError:
    """Return the error that ends a run after too many faults of an engine in a row.

    what: the engine. last: the description of the last fault. resume: the command that resumes the run, "" for none.
    """
    return UserError(
        f"{what} failed {faults} times in a row (engine.max_faults), at last with: {last}. " + advice(resume),
        code=ErrorCode.ENGINE_FAILED,
        key="engine.max_faults",
    )


def advice(resume: str) -> str:
    """Return what to do after an engine ended the run, "" when there is no command that resumes it."""
    return f"Everything up to the last checkpoint is safe. Resume with: {resume}" if resume else ""
