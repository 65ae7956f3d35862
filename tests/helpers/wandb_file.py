"""Reads the .wandb file of an offline run, a LevelDB log of protocol buffers.

https://github.com/google/leveldb/blob/main/doc/log_format.md describes the blocks. W&B's file begins with 7 bytes of
its own, which count as part of the first block.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEAD = 32768, 7  # bytes: of a block, of the header of the file and of each fragment
FULL, LAST = 1, 4  # kinds of fragments that end a record


def finished_records(run_dir: Path, seconds: float = 60) -> Iterator[tuple[Path, list[Any]]]:
    """Yield the file of each start of a finished run, and its records. W&B's service may write the last of them just
    after the run is finished, so each file is read again until it has its end."""
    for path in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")):
        deadline = time.monotonic() + seconds
        while not (found := list(records(path))) or found[-1].WhichOneof("record_type") != "exit":
            assert time.monotonic() < deadline, f"{path} has no end"
            time.sleep(0.05)
        yield path, found


def records(path: Path) -> Iterator[Any]:
    """Yield the records of an offline run, in order."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert data[:4] in (b":W&B", b"")
    offset, record = HEAD, b""
    while offset + HEAD <= len(data):
        if (left := BLOCK - offset % BLOCK) < HEAD:
            offset += left
            continue
        length, kind = struct.unpack_from("<HB", data, offset + 4)
        record += data[offset + HEAD : offset + HEAD + length]
        offset += HEAD + length
        if kind in (FULL, LAST):
            yield Record.FromString(record)
            record = b""
