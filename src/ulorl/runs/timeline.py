"""timeline.jsonl: which samples decoded when, a line for each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ulorl.common.finite_json import FINITE_JSON
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.types import Sample, Status

TIMELINE = "timeline.jsonl"
DECODE_STEPS, MILLISECONDS = "decode steps", "milliseconds"
_LETTERS = {Status.UNFINISHED: "u", Status.COMPLETE: "c", Status.TRUNCATED: "t"}
_COLUMNS = ("sample", "start", "end", "tokens", "engine")


class Span(NamedTuple):
    """When one segment was decoded, since the step began."""

    start: int
    end: int
    engine: int = 0


@dataclass(frozen=True, eq=False)
class StepTimeline:
    """The segments of one step, all columns in one order. unit: of `length`, `start` and `end`."""

    step: int
    version: int | None  # that decoded; None without a segment
    unit: str
    length: int  # of the rollout
    sample: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    tokens: NDArray[np.int64]
    engine: NDArray[np.int64]
    status: str  # a letter for each segment: u unfinished, c complete, t truncated


def timeline_entry(
    step: int, segments: Sequence[Sample], spans: Mapping[int, Span], length: int, unit: str
) -> dict[str, Any]:
    """Return the line of a step for timeline.jsonl.

    segments: the samples that were decoded in the step, as their segments left them. spans: by sample id. length: of
    the rollout, in `unit` as the spans are. With the unit `MILLISECONDS`, engines are listed too.
    """
    found = [spans[sample.id] for sample in segments]
    return {
        "step": step,
        "version": int(segments[0].segments[-1].versions[-1]) if segments else None,
        "unit": unit,
        "length": length,
        "sample": [sample.id for sample in segments],
        "start": [span.start for span in found],
        "end": [span.end for span in found],
        "tokens": [len(sample.segments[-1]) for sample in segments],
        **({"engine": [span.engine for span in found]} if unit == MILLISECONDS else {}),
        "status": "".join(_LETTERS[sample.status] for sample in segments),
    }


def read_timeline(run_dir: Path, steps: int) -> list[StepTimeline]:
    """Return the timelines of the last `steps` steps that are stored, oldest first; [] without the file. Raises
    UserError naming the file when a line is damaged."""
    path = run_dir / TIMELINE
    lines = last_lines(path, steps) if path.exists() else []
    try:
        return [_read(FINITE_JSON.decode(line.decode())) for line in lines]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{path}: one of the last {steps} lines is damaged ({type(error).__name__}: {error}); delete the file to "
            "see the report without the timeline",
            code=ErrorCode.RUN_DAMAGED,
            file=path,
        ) from None


def last_lines(path: Path, number: int, block: int = 1 << 20) -> list[bytes]:
    """Return the last `number` complete lines of a file, which is read from its end."""
    with path.open("rb") as file:
        position, content = file.seek(0, 2), b""
        while position and content.count(b"\n") <= number:
            start = max(0, position - block)
            file.seek(start)
            content, position = file.read(position - start) + content, start
            block *= 2
    *complete, _ = content.split(b"\n")  # what follows the last line end was not written to its end
    return complete[-number:]


def _read(entry: dict[str, Any]) -> StepTimeline:
    if not (isinstance(entry["step"], int) and isinstance(entry["length"], int)):
        raise ValueError('no whole number under "step" or "length"')
    rows = len(entry["sample"])
    columns = {name: np.array(entry.get(name, [0] * rows), dtype=np.int64) for name in _COLUMNS}
    if any(len(column) != rows for column in (*columns.values(), entry["status"])):
        raise ValueError("columns of different lengths")
    return StepTimeline(
        entry["step"], entry["version"], entry["unit"], entry["length"], status=entry["status"], **columns
    )
