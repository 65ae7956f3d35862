"""What is new in the folder of a run that is being watched, for the page that `ulorl watch` serves."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any, NamedTuple, Self

from ulorl.report.html_report import html, page_data
from ulorl.report.page_json import size_of
from ulorl.report.run_data import head, run_data
from ulorl.report.sample_choice import STEPS, Stored, choose, read_files, read_some, shown, spaced
from ulorl.report.step_rows import row
from ulorl.report.timeline_data import timeline_data
from ulorl.runs.run_folder import finished
from ulorl.runs.saved_run import METRICS, read_metric_lines, read_run, read_samples, sample_files
from ulorl.types import Metrics

SAMPLES_LIMIT = 3_000_000  # bytes of the samples that the page has when it is opened
STEP_LIMIT = 30_000_000  # bytes of the samples of one step that are sent whole
_NEW_SAMPLES_LIMIT = 300_000  # bytes of the samples that come with the steps of one answer
_CHECKED = 4096  # bytes before the place that was read last
_CURSOR = re.compile(r"[0-9]{1,15}-[0-9]{1,10}")


class Cursor(NamedTuple):
    """How far metrics.jsonl was read: a number of bytes, and a checksum of the last ones of them, by which a run that
    was resumed from an earlier step or started again is noticed."""

    length: int
    checksum: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str` returned; anything else is the beginning."""
        length, _, checksum = text.partition("-")
        return cls(int(length), int(checksum)) if _CURSOR.fullmatch(text) else cls(0, 0)

    @classmethod
    def at(cls, content: bytes, length: int) -> Self:
        """Return the cursor after the first `length` bytes of a file; of a shorter file, after all of them."""
        length = min(length, len(content))
        return cls(length, zlib.crc32(content[max(0, length - _CHECKED) : length]))

    def __str__(self) -> str:
        return f"{self.length}-{self.checksum}"


BEGINNING = Cursor(0, 0)


def live_page(run_dir: Path) -> str:
    """Return the page of a run that asks for news. Raises UserError when it is not a run or a file is damaged."""
    _, cursor, _ = new_lines(run_dir / METRICS, BEGINNING)  # before the run is read: nothing can be missed
    run = read_run(run_dir)
    samples = read_some(run)
    one = run_data(run, samples, rows=len(run.metrics)) | {"samples": choose(samples, SAMPLES_LIMIT)}
    one["counts"] |= _stored_steps(run_dir)
    return html(page_data([run], [one], live=True) | {"cursor": str(cursor), "start": _start(run_dir)})


def news(run_dir: Path, cursor: Cursor) -> dict[str, Any]:
    """Return what a run wrote since `cursor`: the rows of its new steps with some of their samples, and the parts of
    the page that change as a whole. `restarted`: the rows before are of another run, so the page must be loaded again.
    `start` changes when the run is started again. Raises UserError."""
    entries, read_to, restarted = new_lines(run_dir / METRICS, cursor)
    if not entries:
        return {"rows": [], "samples": [], "cursor": str(read_to), "restarted": restarted, "run": {}} | _state(run_dir)
    run = read_run(run_dir)
    steps = {int(entry["step"] or 0) for entry in entries}
    samples = read_files(spaced([(step, path) for step, path in run.sample_files() if step in steps], STEPS))
    return {
        "rows": [row(entry, samples.lengths.get(int(entry["step"] or 0), ())) for entry in entries],
        "samples": choose(samples, _NEW_SAMPLES_LIMIT),
        "cursor": str(read_to),
        "restarted": restarted,
        "run": head(run) | {"timeline": timeline_data(run)},
        "counts": _stored_steps(run_dir),
        **_state(run_dir),
    }


def samples_of(run_dir: Path, step: int) -> list[Stored]:
    """Return every stored sample of a step, whole; [] without any. Those after the first `STEP_LIMIT` bytes have their
    middle left out. Raises UserError when the file is damaged."""
    path = dict(sample_files(run_dir)).get(step)
    found, left = [], STEP_LIMIT
    for sample in read_samples(path) if path else ():
        whole = shown(sample, step, clip=None)
        left -= size_of(whole)
        found.append(whole if left >= 0 else shown(sample, step))
    return found


def new_lines(path: Path, cursor: Cursor) -> tuple[list[Metrics], Cursor, bool]:
    """Return the metrics of the complete lines of metrics.jsonl after `cursor`, how far they reach, and whether the
    file is another one than `cursor` was of; then its lines are returned from the first on. Raises UserError naming the
    line when one is damaged."""
    if _unchanged(path, cursor):
        return [], cursor, False
    content = path.read_bytes() if path.exists() else b""
    restarted = cursor != Cursor.at(content, cursor.length)
    begin, end = 0 if restarted else cursor.length, content.rfind(b"\n") + 1
    return read_metric_lines(content[:end], path, begin), Cursor.at(content, end), restarted


def _unchanged(path: Path, cursor: Cursor) -> bool:
    """Return whether a file ends where `cursor` is. Only its end is read, because the page asks every two seconds."""
    if not path.exists() or path.stat().st_size != cursor.length:
        return False
    with path.open("rb") as file:
        file.seek(max(0, cursor.length - _CHECKED))
        return zlib.crc32(file.read()) == cursor.checksum


def _state(run_dir: Path) -> dict[str, Any]:
    return {"finished": finished(run_dir) is not None, "start": _start(run_dir)}


def _start(run_dir: Path) -> int:
    """Return a checksum of the files that are written at each start of a run."""
    files = [run_dir / name for name in ("config.json", "environment.json")]
    return zlib.crc32(b"".join(path.read_bytes() for path in files if path.exists()))


def _stored_steps(run_dir: Path) -> dict[str, Any]:
    return {"stored_steps": [step for step, _ in sample_files(run_dir)]}


def as_bytes(answer: Any) -> bytes:
    """Return an answer as JSON in UTF-8. Halves of a character become question marks."""
    return json.dumps(answer, ensure_ascii=False, allow_nan=False).encode(errors="replace")
