"""Memory of vLLM engines."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _free_memory() -> Iterator[None]:
    """An engine in our process frees its memory with its last reference, which cycles delay."""
    yield
    gc.collect()
