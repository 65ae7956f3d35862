r"""Which part of an output is its answer: what every reward judges. Each search is linear in the text's length.

Places, which `reward.answer.find` names in the order in which they are looked into:

- boxed: what the last complete `\boxed{...}`, `\fbox` or `\framebox` holds, nested and escaped braces among it
- tags: what the last `<answer>...</answer>` holds
- phrase: what follows the last "the answer is", "Answer:" or "####", to the end of the sentence
- expression: the last `$...$`, `$$...$$`, `\(...\)`, `\[...\]` or number, whichever ends later
- last_number: the last number, fractions and powers of ten included
- quantity: the last number with the unit, percent or currency sign beside it
- line: the last line that is not empty

A place that is there and empty ends the search: `\boxed{}` is no answer, whatever stands before it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ulorl.sections import Answer, Place

MATH: tuple[Place, ...] = ("boxed", "tags", "phrase", "expression")
NUMERIC: tuple[Place, ...] = ("boxed", "tags", "phrase", "quantity")
PROSE: tuple[Place, ...] = ("boxed", "tags", "phrase", "line")  # also words may be the answer

_BRACES = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{|\\[{}]|[{}]")
_PHRASE = re.compile(
    r"####"
    r"|\banswer(?: to th(?:e|is) (?:question|problem))?[*_]{0,2} ?(?:(?:is|are|would be|should be|equals)\b|[:=：])"
    r"(?!(?: is)?[ *]{0,3}(?:in)?(?:correct|right|wrong|clear|obvious|not|as follows|given by|unique)\b)"
    r"|答案[是为：:]",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(
    r"(?<!\b(?:St|Mr|Ms|Dr))(?<!\bMrs)[.。](?=\s+[A-Z\\$(]|\s*$)|[!?](?=\s|$)|,?\s(?=because\b)|,\s(?=(?:since|as|which|so|where)\b)"
)
_MATH_MARK = re.compile(r"\\.|\$\$?|\n\n", re.DOTALL)
_MONEY = re.compile(r"\s\$.?$|\$\d$|\n|^\d[^$\\]{0,200}?[A-Za-z]{3}", re.DOTALL)  # between dollar signs: no formula
_CLOSING = {r"\(": r"\)", r"\[": r"\]", "$": "$", "$$": "$$"}
_DIGITS = r"\d+(?:(?:,|\{,\}|\\,)\d{3})*(?:\.\d+)?"
_POWER = r"\s?(?:\\times|\\cdot|[×·*x])\s?10\s?(?:\^|\*\*)\s?(?:\{[-−+]?\d{1,9}\}|[-−+]?\d{1,9})|[eE][-+]?\d{1,9}\b"
_NUMBER = re.compile(
    rf"(?<![\d.])[-−]?{_DIGITS}(?:{_POWER}|\s?/\s?\d+|:{_DIGITS}(?::{_DIGITS})*|\^(?:\{{\d{{1,9}}\}}|\d{{1,9}}))?"
)
_BEFORE = r"(?:\\?\$|[€£¥])?\s?[-−]?(?:\\?\$|[€£¥])?\s?"
_WORD = r"[A-Za-zµμΩ°][\w/^*²³-]{0,30}"
_UNIT = rf"\^?\{{?\\circ\}}?|\\?[%°¢]|\\(?:text|mathrm|mbox)\s?\{{[^{{}}\n]{{1,30}}\}}|{_WORD}(?: {_WORD}){{0,3}}"
_TRAILING = re.compile(rf"\s?(?:{_UNIT}){{1,2}}(?=[.,;!?$*_\s]{{0,4}}(?:\n|$)|[.,;] )")
_LEADING = re.compile(rf"{_BEFORE}$")
_ENDS = " \t\r\n.。,;"
_MARKUP = " \t\r\n*_`\"'“”"


class Found(NamedTuple):
    """What stands in a place."""

    answer: str
    prose: bool = False  # words may surround it
    place: str = ""  # its name


def extract(text: str, settings: Answer | None = None, find: Sequence[Place] = PROSE) -> str | None:
    """The answer of an output; None: it holds none.

    settings: `reward.answer`; find: the places where `settings.find` is empty.
    """
    found = locate(text, settings, find)
    return found and found.answer


def locate(text: str, settings: Answer | None = None, find: Sequence[Place] = PROSE) -> Found | None:
    """As `extract`, and whether words may surround the answer."""
    settings = settings or Answer()
    said = after_thinking(text, settings)
    if said is None:
        return None
    for place in settings.find or find:
        found = _tagged(said, settings.tag) if place == "tags" else _PLACES[place](said)
        if found is not None:
            answer = found.answer.strip()
            return Found(answer, found.prose, place) if answer else None
    return None


def after_thinking(text: str, settings: Answer) -> str | None:
    """What stands after the thinking; None while it goes on."""
    if settings.thinking == "off":
        return text
    _, closing, said = text.rpartition(f"</{settings.think_tag}>")
    if (settings.thinking == "required" and not closing) or f"<{settings.think_tag}>" in said:
        return None
    return said


def last_boxed(text: str) -> str | None:
    r"""What the last complete \boxed{...} (or \fbox, \framebox) holds; None without one."""
    start, end, opened = -1, -1, list[int]()  # of each open brace: where its box begins, -1 for any other brace
    for token in _BRACES.finditer(text):
        if token[0].endswith("{") and token[0] != r"\{":
            opened.append(token.end() if len(token[0]) > 1 else -1)
        elif token[0] == "}" and opened and (inner := opened.pop()) > start:
            start, end = inner, token.start()
    return text[start:end] if start >= 0 else None


def _boxed(text: str) -> Found | None:
    held = last_boxed(text)
    return None if held is None else Found(held)


def _tagged(text: str, tag: str) -> Found | None:
    opened, found = -1, None
    for mark in re.finditer(rf"<(/?){re.escape(tag)}>", text, re.IGNORECASE):
        if not mark[1]:
            opened = mark.end()
        elif opened >= 0:
            found, opened = Found(text[opened : mark.start()]), -1
    return found


def _phrase(text: str) -> Found | None:
    begun = -1
    for phrase in _PHRASE.finditer(text):
        begun = phrase.end()
    if begun < 0:
        return None
    rest = text[begun:].lstrip(f"{_MARKUP}:=：")
    line = rest.partition("\n")[0]
    if text[: len(text) - len(rest)].endswith("**"):  # Markdown's, closed behind the answer
        line = line.partition("**")[0]
    for opening, closing in ((r"\(", r"\)"), (r"\[", r"\]"), ("$$", "$$"), ("$", "$")):
        if rest.startswith(opening):
            inner, closed, after = (line if opening == "$" else rest)[len(opening) :].partition(closing)
            if closed and not (opening == "$" and _MONEY.search(f"{inner}${after[:1]}")):
                return Found(inner.strip(_ENDS))
            break
    said = _SENTENCE_END.split(line, maxsplit=1)[0]
    return Found(said.strip(_MARKUP).rstrip(_ENDS + ":!").strip(_MARKUP), prose=True)


def _expression(text: str) -> Found | None:
    formula, number = _last_formula(text), _last(text)
    if formula and (number is None or formula.end > number.start()):
        return Found(text[formula.start : formula.end].strip(_ENDS))
    return number and Found(number[0].replace("−", "-"))


class _Span(NamedTuple):
    start: int
    end: int


def _last_formula(text: str) -> _Span | None:
    opening, start, found = "", 0, None
    for mark in _MATH_MARK.finditer(text):
        sign, at = mark[0], mark.start()
        if opening and sign == _CLOSING[opening]:
            if sign == "$" and _MONEY.search(text[start : at + 2]):
                start = mark.end()  # the first was money; this one may open
                continue
            if text[start:at].strip(_ENDS):
                found = _Span(start, at)
            opening = ""
        elif sign in _CLOSING and opening in ("", "$"):
            opening, start = sign, mark.end()
        elif sign == "\n\n":
            opening = ""
    return found


def _last(text: str) -> re.Match[str] | None:
    last = None
    for number in _NUMBER.finditer(text):
        if not text[max(0, number.start() - 2) : number.start()].rstrip("{").endswith("^"):  # the 2 of cm^2
            last = number
    return last


def _last_number(text: str) -> Found | None:
    last = _last(text)
    return last and Found(last[0].replace("−", "-"))


def _quantity(text: str) -> Found | None:
    last = _last(text)
    if last is None:
        return None
    leading = _LEADING.search(text, max(0, last.start() - 6), last.start())
    trailing = _TRAILING.match(text, last.end())
    return Found(text[leading.start() if leading else last.start() : trailing.end() if trailing else last.end()])


def _line(text: str) -> Found | None:
    line = text.rstrip().rpartition("\n")[2]
    return Found(line, prose=True) if line else None


_PLACES: Mapping[Place, Callable[[str], Found | None]] = {
    "boxed": _boxed,
    "phrase": _phrase,
    "expression": _expression,
    "last_number": _last_number,
    "quantity": _quantity,
    "line": _line,
}
