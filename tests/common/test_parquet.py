"""Parquet files: what is written is read again; damage is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from refusals import refused
from ulorl.common.parquet import read_parquet, write_parquet
from ulorl.error_codes import ErrorCode

COLUMNS: dict[str, object] = {"name": str, "right": bool, "steps": list[str]}
ROWS = [{"name": "é", "right": True, "steps": ["a", "b"]}, {"name": "", "right": False, "steps": []}]


@pytest.mark.parametrize("rows", [ROWS, []])
def test_rows_survive(rows: list[dict[str, object]], tmp_path: Path) -> None:
    path = tmp_path / "a[1]?.parquet"  # a name, and no glob pattern
    write_parquet(path, rows, COLUMNS)
    assert list(read_parquet(path)) == rows
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, ROWS, COLUMNS)
    path.write_bytes(path.read_bytes()[:-20])
    with refused(ErrorCode.DATA_UNREADABLE, file=path):
        list(read_parquet(path))
