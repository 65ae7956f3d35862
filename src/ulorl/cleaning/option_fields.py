"""The options of multiple choice that a record holds apart from its question, as in MMLU, ARC, MMLU-Pro and C-Eval."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ulorl.answers.normalisation import comparable_answer, comparable_question
from ulorl.cleaning.cleaning_config import SourceConfig
from ulorl.cleaning.question_shapes import option_letter
from ulorl.cleaning.reference_answers import short_answer
from ulorl.data.record_files import Record, decimal, is_number

CHOICES = ("choices", "options")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LABEL = re.compile(r"\s*\(?([A-Z])\s*[).:．、]\s*")  # that AQuA's options begin with
_INDEX = re.compile(r"\d{1,2}(?:\.0)?")


@dataclass(frozen=True)
class RecordOptions:
    """The options of a record in their order, with their labels and the field that held them."""

    field: str
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    first: int  # the number of the first, where the answer is a number

    def resolve(self, record: Record, name: str, answer: str, value: Any, source: str) -> str:
        """Return the text of the option that the answer names by its label, number or text.

        name: the answer's field; value: what it holds; source: for messages. Raises UserError, naming the record, when
        the answer names no option, or two: a number may be another option's text.
        """
        if not answer.strip():
            return answer  # for step `normalise` to drop
        short = short_answer(answer)
        by_text = [text for text in self.texts if comparable_answer(text) == comparable_answer(short)]
        label = option_letter(short) or short.strip("(). ")
        by_label = [text for text, own in zip(self.texts, self.labels, strict=True) if own.upper() == label.upper()]
        at = int(float(short)) - self.first if _INDEX.fullmatch(short) and not by_label else -1
        by_number = [self.texts[at]] if 0 <= at < len(self.texts) else []
        named = by_label or by_number
        if not isinstance(value, str) and named:
            by_text = by_text if self.labels_are_numbers else []  # a number beside texts is a number of the option
        found = {comparable_answer(text): text for text in [*named, *by_text]}
        if len(found) == 1:
            return next(iter(found.values()))
        said = f"field {name!r} is {answer[:80]!r}"
        if found:
            raise record.error(
                f"{said}, in {self.field!r} the number of one option and the text of another; name the text"
            )
        hint = f"; where the first option has number 1, set sources.{source}.first_choice=1" if at >= 0 else ""
        raise record.error(
            f"{said}, which names none of the {len(self.texts)} options in {self.field!r}"
            f" by its label, its number (from {self.first}) or its text{hint}"
        )

    @property
    def labels_are_numbers(self) -> bool:
        """True if the labels are 1, 2, 3 and not letters."""
        return all(label.isdecimal() for label in self.labels)

    def add_to(self, question: str) -> str:
        """Return the question with its options behind letters, unless it shows them already."""
        form = comparable_question(question)
        shown = all(comparable_question(text) in form for text in self.texts)
        if shown and re.search(r"\(?[A-Da-d1]\s?[).:．、]", question):
            return question
        lines = [f"({label}) {text}" for label, text in zip(LETTERS, self.texts, strict=False)]
        return "\n".join([question.rstrip(), *lines])


def record_options(record: Record, settings: SourceConfig) -> RecordOptions | None:
    """Return the options of a record; None when it has none.

    They are in the field that the source names or in a usual one, or in fields A, B, C... Raises UserError when the
    named field holds something else than options.
    """
    for field in [settings.choices] if settings.choices else CHOICES:
        value = record.fields.get(field)
        if isinstance(value, str) and value.strip():
            value = _parsed(value)
        if value is None or value in ("", [], {}):
            continue
        texts, labels = _pairs(value)
        if not texts:
            if not settings.choices:
                continue  # by a usual name, but no options
            what = f"field {field!r} holds no list of options (sources.NAME.choices)"
            raise record.error(what, key="sources.NAME.choices")
        return RecordOptions(field, tuple(texts), tuple(labels), settings.first_choice)
    return None if settings.choices else _lettered(record, settings)


def _pairs(value: Any) -> tuple[list[str], list[str]]:
    """Texts and labels of a list, of an object by label, or of an object of two lists (ARC); else nothing."""
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        texts, labels = value["text"], value.get("label")
    elif isinstance(value, Mapping):
        filled = {key: text for key, text in value.items() if text is not None}
        texts, labels = list(filled.values()), list(filled)
    else:
        texts, labels = value, None
    if not isinstance(texts, list) or not 2 <= len(texts) <= len(LETTERS):
        return [], []
    known = [_plain(text) for text in texts]
    labels = labels if isinstance(labels, list) and len(labels) == len(texts) else list(LETTERS[: len(texts)])
    if any(text is None for text in known) or not all(isinstance(label, str) for label in labels):
        return [], []
    found = [str(text) for text in known]
    if all((own := _LABEL.match(text)) and own[1] == LETTERS[n] for n, text in enumerate(found)):
        found = [_LABEL.sub("", text, count=1) for text in found]
    return (found, labels) if all(found) else ([], [])


def _plain(value: Any) -> str | None:
    if isinstance(value, str):
        return " ".join(value.split())
    return decimal(value) if is_number(value) else None


def _parsed(cell: str) -> Any:
    """Return the list in a cell of CSV, in the notation of JSON or Python; None for other text."""
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(cell)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return None


def _lettered(record: Record, settings: SourceConfig) -> RecordOptions | None:
    """Fields A, B, C...: options if there are at least two of them from A on."""
    texts: list[str] = []
    for name in LETTERS:
        text = _plain(record.fields.get(name))
        if not text:
            break
        texts.append(text)
    return (
        RecordOptions("A, B, ...", tuple(texts), tuple(LETTERS[: len(texts)]), settings.first_choice)
        if len(texts) > 1
        else None
    )
