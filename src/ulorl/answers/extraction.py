r"""Finds the answer in an output, for every reward. Each search is linear in the text's length.

Places, which `reward.answer.find` names in the order of the search:

- boxed: the content of the last complete `\boxed{...}`, `\fbox` or `\framebox`, with nested and escaped braces
- tags: the content of the last `<answer>...</answer>`
- phrase: the text after the last "the answer is", "Answer:" or "####", to the end of the sentence
- expression: the last `$...$`, `$$...$$`, `\(...\)`, `\[...\]` or number, whichever ends later
- last_number: the last number, fractions and powers of ten included
- quantity: the last number with the unit, percent or currency sign beside it
- line: the last line that is not empty
- math_verify: the result of math-verify's own search in the last 4,000 characters (reward.kind=math only)

An empty place ends the search: `\boxed{}` is no answer, even if one comes before it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ulorl.answers.formulas import ENDS, is_money, last_formula, last_number, last_value
from ulorl.config.reward_config import AnswerConfig, Place

MATH: tuple[Place, ...] = ("boxed", "tags", "phrase", "expression")
NUMERIC: tuple[Place, ...] = ("boxed", "tags", "phrase", "quantity")
PROSE: tuple[Place, ...] = ("boxed", "tags", "phrase", "line")  # also words may be the answer
WHOLE_CHARACTERS = 4000  # of an output, from its end: math-verify's search is not linear

_BRACES = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{|\\[{}]|[{}]")
_APART = 60  # characters between boxes that are one answer
_JOINED = re.compile(
    r"[\s$~]*(?:\\\)|\\\])?(?:[\s~]|\\[,;: ]|\\q?quad)*(?:,|;|(?:\\text\s?\{\s*|,\s*)?(?P<word>and|or)\s*\}?)"
    r"(?:[\s~$]|\\[,;: ]|\\q?quad|\\\(|\\\[)*(?:[A-Za-z](?:_\{?\w\}?)?\s?=\s?)?"
)
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
_CONTINUES = re.compile(
    r"\s*(?:,|;|,?\s*\b(?:and|or)\b|和|或者?)\s*(?:or\s|and\s)?\s*(?:[$\d]|\\\()"
)  # another value follows
_BEFORE = r"(?:\\?\$|[€£¥])?\s?[-−]?(?:\\?\$|[€£¥])?\s?"
_WORD = r"[A-Za-zµμΩ°][\w/^*²³-]{0,30}"
_UNIT = rf"\^?\{{?\\circ\}}?|\\?[%°¢]|\\(?:text|mathrm|mbox)\s?\{{[^{{}}\n]{{1,30}}\}}|{_WORD}(?: {_WORD}){{0,3}}"
_TRAILING = re.compile(rf"\s?(?:{_UNIT}){{1,2}}(?=[.,;!?$*_\s]{{0,4}}(?:\n|$)|[.,;] )")
_LEFT = re.compile(  # of a formula, before its number
    r"(.*(?:=|\\approx|\\simeq|\\sim))?\s{0,9}[-−+]?\s{0,9}(?:\\\$)?\s{0,9}", re.DOTALL
)
_CLOSED = re.compile(r"\$\$?|\\[)\]]")
_LEADING = re.compile(rf"{_BEFORE}$")
_MARKUP = " \t\r\n*_`\"'“”"


class Found(NamedTuple):
    """The text that was found in a place."""

    answer: str
    prose: bool = False  # words may surround it
    place: str = ""  # its name
    whole: bool = False  # math-verify searches for the answer in it


def extract(text: str, settings: AnswerConfig | None = None, find: Sequence[Place] = PROSE) -> str | None:
    """Return the answer of an output; None if it holds none.

    settings: `reward.answer`. find: the places to search where `settings.find` is empty.
    """
    found = locate(text, settings, find)
    return found and found.answer


def locate(text: str, settings: AnswerConfig | None = None, find: Sequence[Place] = PROSE) -> Found | None:
    """Return the answer as `extract` does, with its place and whether words may surround it."""
    settings = settings or AnswerConfig()
    said = after_thinking(text, settings)
    if said is None:
        return None
    for place in settings.find or find:
        found = _tagged(said, settings.tag) if place == "tags" else _PLACES[place](said)
        if found is not None:
            answer = found.answer.strip()
            return found._replace(answer=answer, place=place) if answer else None
    return None


def after_thinking(text: str, settings: AnswerConfig) -> str | None:
    """Return the text after the thinking; None if the thinking has not ended."""
    if settings.thinking == "off":
        return text
    _, closing, said = text.rpartition(f"</{settings.think_tag}>")
    if (settings.thinking == "required" and not closing) or f"<{settings.think_tag}>" in said:
        return None
    return said


class Box(NamedTuple):
    r"""A complete \boxed{...} that contains no other.

    begin: where its command begins; [start, end): its content.
    """

    begin: int
    start: int
    end: int


def _boxes(text: str) -> tuple[list[Box], bool]:
    """The complete boxes, and whether a box is open at the text's end."""
    found = list[Box]()
    # Of each open brace: where the command and the content of its box begin; -1 if it opens no box.
    opened = list[tuple[int, int]]()
    for token in _BRACES.finditer(text):
        if token[0].endswith("{") and token[0] != r"\{":
            opened.append((token.start(), token.end()) if len(token[0]) > 1 else (-1, -1))
        elif token[0] == "}" and opened:
            begin, start = opened.pop()
            if start >= 0 and not (found and found[-1].start > start):
                found.append(Box(begin, start, token.start()))
    return found, any(start >= 0 for _, start in opened)


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last complete \boxed{...} (or \fbox, \framebox); None without one."""
    found, _ = _boxes(text)
    return text[found[-1].start : found[-1].end] if found else None


def _boxed(text: str) -> Found | None:
    """The last box, joined with boxes before it that only "and", "or" or a comma separates from it.

    A box that is cut off may hold only the first digits of a number: without a complete box it means no answer.
    """
    found, cut = _boxes(text)
    if not found:
        return Found("") if cut else None
    said = [text[found[-1].start : found[-1].end]]  # from the last box backwards
    for box, following in zip(reversed(found[:-1]), reversed(found[1:]), strict=True):
        between = text[box.end + 1 : following.begin]
        if len(between) > _APART or not (joined := _JOINED.fullmatch(between)):
            break
        said += [" or " if joined["word"] == "or" else ", ", text[box.start : box.end]]
    return Found("".join(reversed(said)) if len(set(said[::2])) > 1 else said[0])


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
            if closed and not (opening == "$" and is_money(inner, after[:1])) and not _CONTINUES.match(after):
                return Found(inner.strip(ENDS))
            break
    said = _SENTENCE_END.split(line, maxsplit=1)[0]
    return Found(said.strip(_MARKUP).rstrip(ENDS + ":!").strip(_MARKUP), prose=True)


def _expression(text: str) -> Found | None:
    formula, number = last_formula(text), last_value(text)
    if formula and (number is None or formula.end > number.start()):
        return Found(text[formula.start : formula.end].strip(ENDS))
    return number and Found(number[0].replace("−", "-"))


def _last_number(text: str) -> Found | None:
    last = last_number(text)
    return last and Found(last[0].replace("−", "-"))


def _quantity(text: str) -> Found | None:
    last = last_number(text)
    if last is None:
        return None
    formula = last_formula(text)
    if formula and formula.start <= last.start() < formula.end:
        left = _LEFT.fullmatch(text, formula.start, last.start())
        if left:  # the formula is the number with what follows it; a unit in words may follow
            inner = text[left.end(1) if left[1] else formula.start : formula.end].strip(ENDS)
            closing = _CLOSED.match(text, formula.end)
            unit = _TRAILING.match(text, closing.end()) if closing else None
            return Found(inner + (unit[0] if unit else ""))
    leading = _LEADING.search(text, max(0, last.start() - 6), last.start())
    trailing = _TRAILING.match(text, last.end())
    return Found(text[leading.start() if leading else last.start() : trailing.end() if trailing else last.end()])


def _line(text: str) -> Found | None:
    line = text.rstrip().rpartition("\n")[2]
    return Found(line, prose=True) if line else None


def _whole(text: str) -> Found | None:
    return Found(text[-WHOLE_CHARACTERS:], whole=True) if text.strip() else None


_PLACES: Mapping[Place, Callable[[str], Found | None]] = {
    "boxed": _boxed,
    "phrase": _phrase,
    "expression": _expression,
    "last_number": _last_number,
    "quantity": _quantity,
    "line": _line,
    "math_verify": _whole,
}
