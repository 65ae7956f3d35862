"""The files that `ulorl data clean` writes: problems.parquet, dropped.parquet, report.json, and a data card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ulorl import __version__
from ulorl.cleaning.cleaning_config import CleaningConfig
from ulorl.cleaning.items import Dropped, Item, StepReport
from ulorl.common import atomic_files
from ulorl.common.markdown import table
from ulorl.common.parquet import write_parquet
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError

PROBLEMS, DROPPED, REPORT, CARD = "problems.parquet", "dropped.parquet", "report.json", "README.md"
_LIBRARIES = ("datasets", "datasketch", "py3langid", "math-verify", "openai")
_SHOWN = 300  # characters of an example on the card; the report has all
_COLUMNS: dict[str, object] = {
    "id": str,
    "problem": str,
    "answer": str,
    "source": str,
    "original_problem": str,
    "original_answer": str,
    "changed_by": list[str],
    "undecided_by": list[str],
    "meta": str,
}
_DROPPED_COLUMNS = _COLUMNS | {"step": str, "reason": str, "detail": str, "place": str}

FieldCounts = dict[str, dict[str, int]]  # for question and answer: the fields that held them, and in how many records


@dataclass(frozen=True)
class CleaningResult:
    """The result of a run of the pipeline."""

    kept: list[Item]
    dropped: list[Dropped]
    steps: list[StepReport]
    sources: dict[str, int]  # records of each source
    fields: dict[str, FieldCounts]  # of each source
    models: dict[str, dict[str, int]]  # outputs of each model


@dataclass(frozen=True)
class ResultFiles:
    """The paths of the files."""

    problems: Path
    dropped: Path
    report: Path
    card: Path


def prepare_folder(out: Path, *, overwrite: bool, ours: str) -> None:
    """Create the folder for the result, and remove the report of an earlier result.

    ours: a further file that may be there. Raises UserError when the folder holds a finished result and `overwrite` is
    False, or other files.
    """
    known = {PROBLEMS, DROPPED, REPORT, CARD, ours, f"{ours}-wal", f"{ours}-shm"}
    try:
        out.mkdir(parents=True, exist_ok=True)
        there = {path.name for path in out.iterdir()}
    except OSError as error:
        raise _out_error(out, f"cannot be used as a folder ({error.strerror})", ErrorCode.FILE_NOT_WRITABLE) from None
    if strange := sorted(name for name in there - known if not name.endswith(atomic_files.PARTIAL)):
        raise _out_error(out, f"holds other files ({', '.join(strange[:5])}); choose a new folder")
    if REPORT in there and not overwrite:
        raise _out_error(out, "holds a finished result; choose another folder, or give --overwrite")
    (out / REPORT).unlink(missing_ok=True)  # from here on the result is unfinished


def _out_error(out: Path, what: str, code: ErrorCode = ErrorCode.OUTPUT_EXISTS) -> UserError:
    return UserError(f"--out {out}: {what}", code=code, file=out, key="--out")


def write_result(result: CleaningResult, settings: CleaningConfig, out: Path) -> ResultFiles:
    """Write the four files, the report last: with it the result is complete.

    Nothing in them depends on time or machine. Raises UserError when the disk is full or the like.
    """
    files = ResultFiles(out / PROBLEMS, out / DROPPED, out / REPORT, out / CARD)
    report: dict[str, Any] = {
        "ulorl": __version__,
        "libraries": {name: number for name in _LIBRARIES if (number := _version(name))},
        "sources": result.sources,
        "records": sum(result.sources.values()),
        "fields_by_source": result.fields,
        "kept": len(result.kept),
        "kept_by_source": {name: sum(item.source == name for item in result.kept) for name in result.sources},
        "dropped": len(result.dropped),
        "undecided": sum(bool(item.undecided_by) for item in result.kept),
        "models": result.models,
        "steps": [asdict(step) for step in result.steps],
        "config": settings.model_dump(mode="json"),
    }
    with atomic_files.writing(
        out, lambda: "free some disk space, then run the same command again; model outputs are in the cache"
    ):
        write_parquet(files.problems, [_row(item) for item in result.kept], _COLUMNS)
        write_parquet(files.dropped, [_dropped_row(dropped) for dropped in result.dropped], _DROPPED_COLUMNS)
        atomic_files.write_text(files.card, _card(report))
        atomic_files.write_text(files.report, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return files


def _row(item: Item) -> dict[str, Any]:
    return {
        "id": item.id,
        "problem": item.question,
        "answer": item.answer,
        "source": item.source,
        "original_problem": item.original_question,
        "original_answer": item.original_answer,
        "changed_by": list(item.changed_by),
        "undecided_by": list(item.undecided_by),
        "meta": item.meta,
    }


def _dropped_row(dropped: Dropped) -> dict[str, Any]:
    reason = {
        "step": dropped.step,
        "reason": dropped.drop.reason,
        "detail": dropped.drop.detail,
        "place": dropped.item.place,
    }
    return _row(dropped.item) | reason


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _card(report: Mapping[str, Any]) -> str:
    """Return the data card, made from the values of the report."""
    loader = PackageLoader("ulorl", "cleaning")
    environment = Environment(
        loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["short"] = _short
    sources = [
        (name, n, report["kept_by_source"][name], _used(report, name, "question"), _used(report, name, "answer"))
        for name, n in report["sources"].items()
    ]
    steps = [
        (step["name"], step["before"], _reasons(step["dropped"]), step["changed"], step["undecided"], step["after"])
        for step in report["steps"]
    ]
    return environment.get_template("data_card.md.jinja").render(
        report=report,
        problems=PROBLEMS,
        dropped=DROPPED,
        report_file=REPORT,
        sources=table(("source", "records", "kept", "question read from", "answer read from"), sources),
        steps=table(("step", "before", "dropped", "changed", "undecided", "after"), steps),
        config=json.dumps(report["config"], indent=2, ensure_ascii=False),
    )


def _used(report: Mapping[str, Any], source: str, key: str) -> str:
    """`answer`, or with counts where records of one source used different fields."""
    used = report["fields_by_source"].get(source, {}).get(key, {})
    counts = [f"`{name}`: {number}" for name, number in sorted(used.items(), key=lambda pair: (-pair[1], pair[0]))]
    return ", ".join(counts) or "-"


def _reasons(dropped: Mapping[str, int]) -> str:
    return "<br>".join(f"{reason}: {number}" for reason, number in sorted(dropped.items())) or "0"


def _short(text: str) -> str:
    text = text.replace("```", "'''")
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
