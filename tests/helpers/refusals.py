"""Checks that something is refused with a stable code at the right place, independent of the wording."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError


@contextmanager
def refused(
    code: ErrorCode, *, file: object = None, key: str | None = None, record: str | None = None
) -> Iterator[pytest.ExceptionInfo[UserError]]:
    """Expect a UserError one of whose parts has this code, and this file, key and record where they are given."""
    with pytest.raises(UserError) as caught:
        yield caught
    wanted = {"file": file, "key": key, "record": record}
    places = {name: str(value) for name, value in wanted.items() if value is not None}
    found = [(e.code, {name: getattr(e, name) for name in places}) for e in caught.value.each()]
    assert (code, places) in found, f"expected {code} at {places}, found {found}: {caught.value}"
