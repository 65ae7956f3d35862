"""Lets all ranks of a job raise the error that one of them met, so that none waits for the others without end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError, one_line


@contextmanager
def raising_together(group: dist.ProcessGroup | None = None) -> Iterator[None]:
    """Run a block without collectives on every rank of `group`; when it raises on one rank, raise on all.

    A rank that failed raises its own error. The others raise the UserError of the lowest rank that has one; without
    one, an OSError, ValueError or RuntimeError, whichever kind the error of the lowest failed rank is, with its number.
    Without a process group the block runs as it is.
    """
    if not dist.is_initialized():
        yield
        return
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    reports: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(reports, _report(error), group=group)
    if error:
        raise error
    failed = [(rank, report) for rank, report in enumerate(reports) if report]
    for _, (kind, message, fields) in failed:
        if kind is UserError:
            raise UserError(message, code=ErrorCode[fields.pop("code")], **fields)
    for rank, (kind, message, _) in failed:
        raise kind(f"rank {rank} failed: {message}")


def _report(error: Exception | None) -> tuple[type[Exception], str, dict[str, str]] | None:
    """Return the kind of an error, its message, and the fields of a UserError."""
    if error is None:
        return None
    if isinstance(error, UserError):
        fields = {"code": error.code.name, "file": error.file, "key": error.key, "record": error.record}
        return UserError, str(error), fields
    kinds = (kind for kind in (OSError, ValueError) if isinstance(error, kind))
    return next(kinds, RuntimeError), one_line(error), {}
