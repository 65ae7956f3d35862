"""Checks of options that name a file to write."""

from __future__ import annotations

from pathlib import Path

from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError


def check_output_file(option: str, path: Path | None) -> None:
    """Refuse a file in a folder that does not exist. Raises UserError.

    option: the option that names it, for the message. path: None where it is not given.
    """
    if path and not path.absolute().parent.is_dir():
        raise UserError(
            f"{option} {path}: there is no folder {path.parent}",
            code=ErrorCode.FILE_NOT_WRITABLE,
            file=path,
            key=option,
        )
