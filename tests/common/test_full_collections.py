"""Full garbage collections are put off, not lost."""

from __future__ import annotations

import gc

import pytest

from ulorl.common.full_collections import no_full_collections


def full_collections() -> int:
    return int(gc.get_stats()[2]["collections"])


def make_objects() -> list[list[int]]:
    return [[number] for number in range(300_000)]


def test_no_full_collection_happens_in_the_block_and_they_happen_after_it() -> None:
    before, thresholds = full_collections(), gc.get_threshold()
    with no_full_collections():
        kept = make_objects()
        assert full_collections() == before
    assert gc.get_threshold() == thresholds
    kept += make_objects()
    assert full_collections() > before


def test_an_error_in_the_block_brings_them_back() -> None:
    thresholds = gc.get_threshold()
    with pytest.raises(OSError, match="lost"), no_full_collections():
        raise OSError("lost")
    assert gc.get_threshold() == thresholds
