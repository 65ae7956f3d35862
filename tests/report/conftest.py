"""One browser for all tests of the report that a process runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from browser import Page, opened_page


@pytest.fixture(scope="session")
def tab() -> Iterator[Page]:
    with opened_page() as page:
        yield page
