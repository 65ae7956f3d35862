"""Steps `answers` and `short_answers`: find the short answer in a reference, and drop references without one."""

from __future__ import annotations

import re
from decimal import Decimal
from functools import partial

from ulorl.answers.extraction import last_boxed
from ulorl.answers.normalisation import comparable_answer
from ulorl.cleaning.cleaning_config import ShortAnswersConfig
from ulorl.cleaning.items import Drop, Item, Outcome, Step, per_item
from ulorl.cleaning.question_text import prose
from ulorl.data.record_files import decimal

_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_FLOAT = re.compile(
    r"[-+]?\d(?:\.\d+)?[eE][-+]?0\d|[-+]?\d(?:\.\d+)?[eE][-+][1-9]\d|[-+]?\d\.\d+[eE][-+]?\d{1,2}"
)  # as str() writes it
_SAID = re.compile(
    r"(?:\bfinal answer(?: is)?\b|\b(?:the|our) answer is\b|(?:^|\n)answer\s*[:=]"
    r"|答案(?=[是为：:])[是为]?)\s*[:：]?\s*",
    re.I,
)
_SENTENCE_END = re.compile(r"(?:\.(?=\s|$)|。|\n)")
_ENCLOSED = (
    re.compile(r"\$\$(.+)\$\$", re.S),
    re.compile(r"\$([^$]+)\$"),
    re.compile(r"\\\((.+)\\\)", re.S),
    re.compile(r"\\\[(.+)\\\]", re.S),
    re.compile(r"\\(?:text|mathrm|textbf)\s*\{([^{}$\\]+)\}"),
    re.compile(r"\{([A-Za-z ]+)\}"),  # what is left of \text{...} in some exports
)
_SPACING = r"(?:~|\\[,;:!]|\\q?quad(?![A-Za-z])|\\?\s)"
_ENDS = re.compile(rf"^{_SPACING}+|{_SPACING}+$|(?<!\\)\\$")
_DOLLAR = re.compile(r"(?<!\\)\$")
_OPEN_FORMULA = ((r"\(", r"\)"), (r"\[", r"\]"))
_MATRIX = re.compile(
    r"\\begin\s*\{(?:[pbvBV]?(?:small)?matrix|smallmatrix|array|cases|align\*?|tabular)\}|\\\\.+\\\\|\[\s*\[", re.S
)
_LINKING = re.compile(
    r"\b(?:because|therefore|hence|thus|since|suppose|assume|we|which|this|follows|if and only|such that)\b", re.I
)


def shorten_answer(item: Item) -> Item:
    """Return the item with the short answer of its reference, as `short_answer` finds it."""
    return item.with_changes("answers", answer=short_answer(item.answer))


def short_answer(reference: str) -> str:
    r"""Return the short answer in a reference, without enclosing dollar signs.

    It is the text after ####, else the last \boxed{}, else the text after "the answer is", else the whole reference,
    long or not.
    """
    text = reference.strip()
    if "####" in text:
        said = text.rpartition("####")[2].strip()
        text = said.replace(",", "") if _THOUSANDS.fullmatch(said.lstrip("$").rstrip("%")) else said
    elif (boxed := last_boxed(text)) is not None and boxed.strip():
        text = boxed.strip()
    elif said_at := list(_SAID.finditer(text)):
        text = _SENTENCE_END.split(text[said_at[-1].end() :].strip(), maxsplit=1)[0] or text
    text = _bare(text) or text
    return decimal(Decimal(text)) if _FLOAT.fullmatch(text) else text


def _bare(text: str) -> str:
    text = text.strip().rstrip("。").strip()
    if text.endswith(".") and not text.endswith(".."):
        text = text[:-1].strip()
    text = _ENDS.sub("", _closed(text))
    for pattern in _ENCLOSED:
        if found := pattern.fullmatch(text):
            return _bare(found[1])
    return text


def _closed(text: str) -> str:
    """The text without the dollar sign or bracket of a formula that was cut in two, at either end."""
    if len(_DOLLAR.findall(text)) % 2:
        text = re.sub(r"^\$|(?<!\\)\$$", "", text, count=1)
    for left, right in _OPEN_FORMULA:
        if text.count(left) != text.count(right):
            text = text.removeprefix(left).removesuffix(right)
    return text


def check_short(settings: ShortAnswersConfig) -> Step:
    """Return the step that drops references that are matrices, too long, or an explanation."""
    return per_item(partial(_check, settings=settings))


def _check(item: Item, settings: ShortAnswersConfig) -> Outcome:
    answer = item.answer
    if settings.matrices == "drop" and _MATRIX.search(answer):
        return Drop("matrix", answer[:200])
    length = len(comparable_answer(answer))
    if length > settings.max_chars or "\n\n" in answer:
        return Drop("long answer", f"{length} characters")
    if len(prose(answer).split()) > 6 and _LINKING.search(answer):
        return Drop("no short answer", answer)
    return item
