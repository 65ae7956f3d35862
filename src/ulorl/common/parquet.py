"""Parquet files: the one reader and the one writer. `pyarrow` is imported at the first use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ulorl.common import atomic_files
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError, first_line

_ROWS = 1000  # that are decoded at once


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file, without holding all of them.

    Raises UserError, which says after which row the file is damaged.
    """
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            short = [field.name for field in file.schema_arrow if field.type == pyarrow.float32()]
            for row in (row for batch in file.iter_batches(_ROWS) for row in batch.to_pylist()):
                number += 1
                # 0.1 of 32 bits is 0.10000000149 in 64: the fewest digits that name the number are what was meant
                yield row | {name: float(str(np.float32(row[name]))) for name in short if row[name] is not None}
    except Exception as error:  # pyarrow's own, of many types
        text = f"{path}: cannot be read as Parquet after record {number}: {first_line(error)}"
        raise UserError(text, code=ErrorCode.DATA_UNREADABLE, file=path) from error


def write_parquet(path: Path, rows: Iterable[Mapping[str, Any]], columns: Mapping[str, object]) -> None:
    """Write rows as a Parquet file, atomically. columns: each name with its type, which is str, bool or list[str]."""
    import pyarrow
    import pyarrow.parquet

    text = pyarrow.string()
    types: dict[object, Any] = {str: text, bool: pyarrow.bool_(), list[str]: pyarrow.list_(text)}
    schema = pyarrow.schema([(name, types[kind]) for name, kind in columns.items()])
    with atomic_files.replacing(path) as partial:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema), partial)
