"""What `ulorl data clean` leaves behind: problems.parquet, dropped.parquet, report.json and the data card README.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ulorl import __version__
from ulorl.cleaning.cleaning_config import CleaningConfig
from ulorl.cleaning.items import Dropped, Item, StepReport
from ulorl.common import atomic_files
from ulorl.common.markdown import table
from ulorl.errors import UserError

PROBLEMS, DROPPED, REPORT, CARD = "problems.parquet", "dropped.parquet", "report.json", "README.md"
_LIBRARIES = ("datasets", "datasketch", "py3langid", "math-verify", "openai")
_SHOWN = 300  # characters of an example on the card; the report has all


Fields = dict[str, dict[str, int]]  # for question and answer: the fields that held them, and in how many records


@dataclass(frozen=True)
class ResultFiles:
    """The files."""

    problems: Path
    dropped: Path
    report: Path
    card: Path


def prepare_folder(out: Path, *, overwrite: bool, ours: str) -> None:
    """Make the folder. Raises UserError when it holds a finished result and `overwrite` is off, or anything else than
    ours."""
    known = {PROBLEMS, DROPPED, REPORT, CARD, ours, f"{ours}-wal", f"{ours}-shm"}
    try:
        out.mkdir(parents=True, exist_ok=True)
        there = {path.name for path in out.iterdir()}
    except OSError as error:
        raise UserError(f"--out {out}: cannot be used as a folder ({error.strerror})") from None
    if strange := sorted(name for name in there - known if not name.endswith(atomic_files.PARTIAL)):
        raise UserError(f"--out {out}: holds other files ({', '.join(strange[:5])}); choose a new folder")
    if REPORT in there and not overwrite:
        raise UserError(f"--out {out}: holds a finished result; choose another folder, or --overwrite")
    (out / REPORT).unlink(missing_ok=True)  # from here on it is unfinished


def write_result(
    kept: Sequence[Item],
    dropped: Sequence[Dropped],
    steps: Sequence[StepReport],
    read: tuple[dict[str, int], dict[str, Fields]],
    settings: CleaningConfig,
    out: Path,
    models: dict[str, dict[str, int]],
) -> ResultFiles:
    """The four files, the report last: with it the result is complete. Nothing in them depends on time or machine.

    read: the records of each source, and how many of them used which field.
    """
    sources, fields = read
    files = ResultFiles(out / PROBLEMS, out / DROPPED, out / REPORT, out / CARD)
    report: dict[str, Any] = {
        "ulorl": __version__,
        "libraries": {name: number for name in _LIBRARIES if (number := _version(name))},
        "sources": sources,
        "records": sum(sources.values()),
        "fields_by_source": fields,
        "kept": len(kept),
        "kept_by_source": {name: sum(item.source == name for item in kept) for name in sources},
        "dropped": len(dropped),
        "undecided": sum(bool(item.undecided_by) for item in kept),
        "models": models,
        "steps": [asdict(step) for step in steps],
        "config": settings.model_dump(mode="json"),
    }
    with atomic_files.writing(
        out, lambda: "make room, then run the same command again; model outputs are in the cache"
    ):
        _parquet(files.problems, [_row(item) for item in kept])
        _parquet(files.dropped, [_dropped_row(gone) for gone in dropped])
        atomic_files.write_text(files.card, _card(report, steps))
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


def _dropped_row(gone: Dropped) -> dict[str, Any]:
    reason = {"step": gone.step, "reason": gone.drop.reason, "detail": gone.drop.detail, "place": gone.item.place}
    return _row(gone.item) | reason


def _parquet(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    lists = ("changed_by", "undecided_by")
    extra = ("step", "reason", "detail", "place") if path.name == DROPPED else ()
    names = ("id", "problem", "answer", "source", "original_problem", "original_answer", *lists, "meta", *extra)
    text = pyarrow.string()
    schema = pyarrow.schema([(name, pyarrow.list_(text) if name in lists else text) for name in names])
    with atomic_files.replacing(path) as partial:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema), partial)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _card(report: dict[str, Any], steps: Sequence[StepReport]) -> str:
    sources = [
        (name, n, report["kept_by_source"][name], _used(report, name, "question"), _used(report, name, "answer"))
        for name, n in report["sources"].items()
    ]
    reasons = [(s.name, s.before, _reasons(s), s.changed, s.undecided, s.after) for s in steps]
    return "\n".join([
        "---",
        "configs:",
        "- config_name: default",
        f"  data_files: {PROBLEMS}",
        "---",
        "# Cleaned problems",
        "",
        f"{report['kept']} of {report['records']} problems, cleaned by `ulorl data clean` {report['ulorl']}. "
        f"`{PROBLEMS}` holds what stayed, with what it was before; `{DROPPED}` everything that went, with step, reason "
        f"and detail; `{REPORT}` the counts and examples. Licences are those of the sources.",
        "",
        "## Sources",
        "",
        table(("source", "records", "kept", "question read from", "answer read from"), sources),
        "",
        "## Steps",
        "",
        table(("step", "before", "dropped", "changed", "undecided", "after"), reasons),
        "",
        "## Examples",
        "",
        *[line for step in steps for line in _examples(step)],
        "## Configuration",
        "",
        "```json",
        json.dumps(report["config"], indent=2, ensure_ascii=False),
        "```",
        "",
    ])  # fmt: skip


def _used(report: dict[str, Any], source: str, key: str) -> str:
    """`answer`, or with counts where records of one source used different fields."""
    used = report["fields_by_source"].get(source, {}).get(key, {})
    counts = [f"`{name}`: {number}" for name, number in sorted(used.items(), key=lambda pair: (-pair[1], pair[0]))]
    return ", ".join(counts) or "-"


def _reasons(step: StepReport) -> str:
    return "<br>".join(f"{reason}: {number}" for reason, number in sorted(step.dropped.items())) or "0"


def _examples(step: StepReport) -> list[str]:
    lines = []
    for kind, shown in sorted(step.examples.items()):
        lines += [f"**{step.name}: {kind}**", ""]
        for example in shown:
            lines += ["```text", f"{example['id']}: {_short(example['question'])}", f"=> {_short(example['answer'])}"]
            lines += [f"[{_short(example['detail'])}]"] * bool(example["detail"]) + ["```", ""]
    return lines


def _short(text: str) -> str:
    text = text.replace("```", "'''")
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
