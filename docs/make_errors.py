"""Writes docs/errors.md from the table of error codes: `python docs/make_errors.py`."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from ulorl.error_codes import ErrorCode

HEAD = """# Errors

An error that you can fix is printed without a traceback, and the command exits with code 2. In Python it is a
`ulorl.UserError`; the fields `code`, `file`, `key` and `record` say what is wrong and where. A code keeps its meaning
in later versions. `ulorl explain CODE` prints the entry of a code, also where this page is not installed.

This page is written by `docs/make_errors.py` from `src/ulorl/error_codes.py`.
"""


def page() -> str:
    """Return the text of docs/errors.md."""
    parts = [HEAD]
    for line in inspect.getsource(ErrorCode).splitlines():
        if group := re.fullmatch(r"    # (.*)\.", line):
            parts.append(f"## {group[1]}\n")
        elif member := re.match(r"    ([A-Z_]+) = ", line):
            code = ErrorCode[member[1]]
            parts.append(f"### `{code.value}`\n\n{code.cause}\n\nFix: {code.fix}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    (Path(__file__).parent / "errors.md").write_text(page(), encoding="utf-8")
