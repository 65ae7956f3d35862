"""Reads graded outputs of models as labelled pairs: real answers, as a verifier receives them in use."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ulorl.answers.extraction import extract
from ulorl.cleaning.items import Item
from ulorl.cleaning.normalise_step import normalise
from ulorl.cleaning.reference_answers import short_answer
from ulorl.common.key_paths import look_up
from ulorl.data.record_files import TYPED_ENDINGS, Record, decimal, expand_pattern, is_number, read_records
from ulorl.error_codes import ErrorCode
from ulorl.errors import ErrorCollector, UserError
from ulorl.verifier.pairs import Pair

KIND = "real"
_TOKENS = re.compile(r"<[|｜][^<>]{1,40}[|｜]>|</?think>")  # of chat templates


@dataclass(frozen=True)
class Columns:
    """The fields of a record; dots lead into nested records. `outputs` and `verdicts` belong together field by field,
    and entry by entry where they are lists."""

    question: str = "question"
    reference: str = "answer"
    outputs: tuple[str, ...] = ("output",)
    verdicts: tuple[str, ...] = ("correct",)  # true or false; of numbers those above 0 are true
    reference_after: str = ""  # the reference is what follows the last of these, such as "####"
    answer_after: str = ""  # so is the answer in an output; "": its last box, answer tags or "the answer is"
    bare: bool = False  # the outputs are answers already


@dataclass(frozen=True)
class Graded:
    """The pairs of a file of graded outputs."""

    pairs: list[Pair]
    without_answer: int  # outputs without an answer, so that there is nothing to compare


def read_graded(path: str, columns: Columns, source: str = "") -> Graded:
    """Read the graded outputs of JSONL, JSON or Parquet files as pairs of kind "real".

    source: the name of the data set; "" for the file's name.
    Raises UserError naming file, record and field, with the first ten of many faults.
    """
    if not columns.outputs or len(columns.outputs) != len(columns.verdicts):
        numbers = f"{len(columns.outputs)} outputs and {len(columns.verdicts)} verdicts"
        message = f"{path}: {numbers} are named; name a field of verdicts for each field of outputs"
        raise UserError(message, code=ErrorCode.CONFIG_CONFLICT, file=path)
    pairs, missing, faults = list[Pair](), 0, ErrorCollector()
    for file in expand_pattern(path):
        for number, record in enumerate(read_records(file, TYPED_ENDINGS), 1):
            with faults:
                if isinstance(record, UserError):
                    raise record
                found = _pairs(record, columns, source or file.stem, f"{source or file.stem}/{number}")
                pairs += [pair for pair in found if pair is not None]
                missing += found.count(None)
    faults.raise_errors()
    if not pairs:
        message = f"{path}: has no graded output with an answer; check the names of the fields"
        raise UserError(message, code=ErrorCode.DATA_TOO_FEW, file=path)
    return Graded(pairs, missing)


def _pairs(record: Record, columns: Columns, source: str, name: str) -> list[Pair | None]:
    question = _question(_text(record, columns.question))
    reference = _text(record, columns.reference)
    if columns.reference_after:
        _, marker, reference = reference.rpartition(columns.reference_after)
        if not marker:
            raise record.error(f"field {columns.reference!r} lacks {columns.reference_after!r}")
    reference = short_answer(reference)
    pairs: list[Pair | None] = []
    for output_name, verdict_name in zip(columns.outputs, columns.verdicts, strict=True):
        outputs, verdicts = (_list(_value(record, field)) for field in (output_name, verdict_name))
        if len(outputs) != len(verdicts):
            counts = f"{output_name!r} has {len(outputs)} entries and {verdict_name!r} {len(verdicts)}"
            raise record.error(f"{counts}; each output needs its verdict")
        for output, verdict in zip(outputs, verdicts, strict=True):
            right = _verdict(record, verdict_name, verdict)
            answer = _answer(_as_text(record, output_name, output), columns)
            pairs.append(Pair(question, reference, answer, right, KIND, "", source, name) if answer else None)
    return pairs


def _question(text: str) -> str:
    """Return the question without tokens of a chat template and without the sentence that asks for a box."""
    bare = _TOKENS.sub("", text).strip()
    done = normalise(Item("", bare, "-", "", "", bare, "-"))
    return done.question if isinstance(done, Item) else bare


def _answer(output: str, columns: Columns) -> str:
    if columns.bare:
        return output.strip()
    if columns.answer_after:
        _, marker, said = output.rpartition(columns.answer_after)
        return said.strip() if marker else ""
    return extract(output, find=("boxed", "tags", "phrase")) or ""


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _verdict(record: Record, name: str, value: Any) -> bool:
    if not isinstance(value, bool | int | float):
        raise record.wrong(name, value, "true or false, or a number that is above 0 for true")
    return value > 0


def _as_text(record: Record, name: str, value: Any) -> str:
    if not (is_number(value) or isinstance(value, str)):
        raise record.wrong(name, value, "text or a number")
    return value if isinstance(value, str) else decimal(value)


def _text(record: Record, name: str) -> str:
    """Return the text of a field; a list with one entry is that entry."""
    value = _value(record, name)
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    return _as_text(record, name, value)


def _value(record: Record, name: str) -> Any:
    value = look_up(record.fields, name)
    if value is None:
        raise record.error(f"no field {name!r}, or nothing in it; the fields are {record.field_names()}")
    return value


SHAPES: Mapping[str, Columns] = {
    "qwen2.5-math": Columns("question", "answer", ("code",), ("score",)),
    "areal": Columns("prompt", "solutions", ("generateds",), ("rewards",)),
    "gsm8k-solutions": Columns(
        "question",
        "ground_truth",
        tuple(f"{size}_{way}.solution" for size in ("6b", "175b") for way in ("finetuning", "verification")),
        tuple(f"{size}_{way}.is_correct" for size in ("6b", "175b") for way in ("finetuning", "verification")),
        reference_after="A:",
        answer_after="A:",
    ),
}  # published files of graded outputs, by the project that publishes them


def columns_of(names: Sequence[str]) -> Columns | None:
    """Return the columns of `SHAPES` that a record with these field names has, None when it has none of them."""
    there = set(names)
    for columns in SHAPES.values():
        if {
            name.split(".")[0] for name in (columns.question, columns.reference, *columns.outputs, *columns.verdicts)
        } <= there:
            return columns
    return None
