"""Finds formulas and numbers in an output, and the values that a sentence lists. Each search is linear in the text."""

from __future__ import annotations

import re
from typing import NamedTuple

_MATH_MARK = re.compile(r"\\.|\$\$?|\n\n", re.DOTALL)
# Between dollar signs: two amounts of money and no formula. Money begins with a digit right behind its sign.
_MONEY = re.compile(r"\$\d$|\n|^\s?\d(?:[^$\\]{0,200}?[A-Za-z]{3}|[^$\\]{0,200}?[A-Za-z]{2}[^$]{0,200}\s\$)", re.DOTALL)
_CLOSING = {r"\(": r"\)", r"\[": r"\]", "$": "$", "$$": "$$"}
_DIGITS = r"(?:\d+(?:(?:,|\{,\}|\\,)\d{3})*(?:\.\d+)?|\.\d+)"
_POWER = r"\s?(?:\\times|\\cdot|[×·*x])\s?10\s?(?:\^|\*\*)\s?(?:\{[-−+]?\d{1,9}\}|[-−+]?\d{1,9})|[eE][-+]?\d{1,9}\b"
_TAIL = rf"(?:{_POWER}|\s?/\s?\d+|:{_DIGITS}(?::{_DIGITS})*|\^(?:\{{\d{{1,9}}\}}|\d{{1,9}}))?"
_GROUP = r"\s?(?:\{[^{}\n]{1,60}\}|\d)"
_FRACTION = rf"\d{{0,20}}\\(?:[dtc]?frac{_GROUP}{_GROUP}|sqrt{_GROUP})"
_SPACED = (
    r"\d{1,3}(?:[ \u202f]\d{3})+(?!\d)(?:[.,]\d+)?|\d+,\d{1,2}(?![\d,])|\d{4,20},\d+(?![\d,])"  # 1 000; 3,5; 1000,99
)
_NUMBER = re.compile(rf"(?<![\d.])[-−]?{_DIGITS}{_TAIL}")
_VALUE = re.compile(rf"(?<![\d.])[-−]?(?:{_FRACTION}|{_SPACED}|{_DIGITS}{_TAIL})")
_LISTED = re.compile(
    r"\$(?P<dollar>[^$\n]{1,300})\$|\\\((?P<round>[^\n]{1,300}?)\\\)"
    rf"|(?:[A-Za-z]\s?=\s?)?[-−]?(?:{_FRACTION}|{_DIGITS}{_TAIL})"
)
_BETWEEN = re.compile(
    r"\s*(?:[A-Za-z]{2,20}\s*)?(?P<sign>,|;|,?\s*\b(?:and|or)\b|&|和|或者?|、)\s*(?:\b(?:and|or|also|maybe|perhaps|possibly)\b\s*)?"
)
_FILLER = re.compile(r"\s*(?:(?:either|both|the|numbers?|values?|are|is|about|it)\s+)*", re.IGNORECASE)
ENDS = " \t\r\n.。,;"


class Span(NamedTuple):
    """The part [start, end) of a text."""

    start: int
    end: int


def is_money(inner: str, after: str) -> bool:
    """Return whether two dollar signs belong to amounts. inner: the text between; after: the character after."""
    return bool(_MONEY.search(f"{inner}${after}"))


def last_formula(text: str) -> Span | None:
    """Return the span of the content of the last delimited formula; None without one."""
    opening, start, found = "", 0, None
    for mark in _MATH_MARK.finditer(text):
        sign, at = mark[0], mark.start()
        if opening and sign == _CLOSING[opening]:
            if sign == "$" and _MONEY.search(text[start : at + 2]):
                start = mark.end()  # the first was money; this one may open
                continue
            if text[start:at].strip(ENDS):
                found = Span(start, at)
            opening = ""
        elif sign in _CLOSING and opening in ("", "$"):
            opening, start = sign, mark.end()
        elif sign == "\n\n":
            opening = ""
    return found


def last_number(text: str) -> re.Match[str] | None:
    """Return the last number of a text, with its power of ten or denominator; None without one."""
    return _last(text, _NUMBER)


def last_value(text: str) -> re.Match[str] | None:
    r"""Return the last number, or bare \frac{10}{9}, \sqrt{3}, 1 000 or 3,5; None without one."""
    return _last(text, _VALUE)


def _last(text: str, pattern: re.Pattern[str]) -> re.Match[str] | None:
    last = None
    for number in pattern.finditer(text):
        before = text[max(0, number.start() - 2) : number.start()]
        if not before.rstrip("{").endswith("^"):  # the 2 of cm^2
            last = number
    return last


def listed(text: str) -> str | None:
    """Return the values that a sentence lists, separated by commas or "or"; None if it lists none.

    "$5$ or $7$" gives "5 or 7", "40 apples and 60 pears" gives "40, 60". The text must begin with at least two formulas
    or numbers that commas, "and" or "or" connect.
    """
    filler = _FILLER.match(text)
    item = _LISTED.match(text, filler.end() if filler else 0)
    if item is None:
        return None
    said = _inside(item)
    count = 1
    while item and (between := _BETWEEN.match(text, item.end())) and (item := _LISTED.match(text, between.end())):
        said += (" or " if "or" in between[0] or "或" in between[0] else ", ") + _inside(item)
        count += 1
    return said if count > 1 else None


def _inside(item: re.Match[str]) -> str:
    return (item["dollar"] or item["round"] or item[0]).strip()
