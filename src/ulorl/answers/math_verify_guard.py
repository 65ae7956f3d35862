"""Decides what math-verify would read wrongly, and respells what it would misread.

math-verify multiplies the letters of words, drops subscripts, takes the last of several values and the right side of
any equation, and rounds to six decimals. docs/rewards.md lists these classes. Nothing here evaluates an expression.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from ulorl.answers.normalisation import exact_form, strip_typesetting

_RANGE = re.compile(r"\d+ ?(?:[-–—]|--) ?\d+")
_LETTERS = re.compile(r"[A-Za-z]+(?: ?[A-Za-z]+)*")
_LINE_OF_POINTS = re.compile(r"\\(?:angle|overline|triangle|widehat)(?![A-Za-z])\s?")
_BASE = re.compile(r"(?<![A-Za-z\\_^{\d])([\dA-F]*\d[\dA-F]*)_\{?\s?(?:\\text\{\s?)?(\d{1,2})")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_OR = re.compile(
    r"\\(?:text|mathrm|mbox|textrm)\s?\{[\s,]*or\s*\}|(?<![\\A-Za-z])or(?![A-Za-z])|或者?|\\lor(?![A-Za-z])"
)
_MANY = re.compile(r"[,;]|\\pm|\\cup|\\\{|\band\b|和")
_ARROW = re.compile(r"\\(?:to|mapsto|implies|(?:long)?(?:right|left)arrow|(?:Long)?Rightarrow)(?![A-Za-z])|[→⇒]|->|=>")
_INEQUALITY = re.compile(r"[<>≤≥≠]|\\(?:lt|gt|leq?|geq?|neq?|leqslant|geqslant)(?![A-Za-z])")
_EQUALS = re.compile(r"(?<![\\<>!:=])=(?![=>])")
_OPERATOR = re.compile(r"[-+*/^]|\\(?:cdot|times|[dt]?frac|sqrt|div|pm)(?![A-Za-z])")
_PLAIN = re.compile(r"\s*[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+|\\[dt]?frac\s?\{-?\d+\}\s?\{\d+\}|-?\d+/\d+)\s*")
# Euler's number is possible in 3e-2, unless the other side is a decimal; with a decimal point, two digits or the
# coefficient 1 it is a power of ten.
_SCIENTIFIC = re.compile(
    r"(?<![\w.\\])(\d+\.\d+[eE][-+]?\d{1,4}|\d+[eE][-+]?\d{2,4}|1[eE][-+]?\d|\d+[eE]\+?\d)(?![\w.(^])"
)
_LOOSE = re.compile(r"\s*(-?\d+[eE]-\d)\s*")
_MIXED = re.compile(r"\s*(-?)\s?(\d{1,9})\s+(\d{1,9})\s?/\s?(\d{1,9})\s*")
_GROUPED = re.compile(r"\s*(-?\d{1,3}(?:[ \u202f]\d{3})+(?:[.,]\d+)?)\s*")
_COMMA = re.compile(r"\s*-?\d+,\d+\s*")
_POINT = re.compile(r"\s*-?\d*\.\d+\s*")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?)\s?(?:\^\s?\{?\s?\\circ\s?\}?|°|\\degree)")
_ZEROS = re.compile(r"\s*0\d{1,30}\s*")
RELATIVE = 1e-3  # of numbers so small that six decimals say nothing
EXACT = 1e-12  # of numbers without a decimal point
Equal = Callable[[str, str], bool]


def respell(reference: str, answer: str) -> tuple[str, str]:
    """Return reference and answer in spellings that math-verify reads as they are meant.

    It changes 033, 1 000, 1000,99, 4e-05, 1 1/2, and degrees beside pi.
    """
    reference, answer = _number(reference), _number(answer)
    if _POINT.fullmatch(reference) and (short := _LOOSE.fullmatch(answer)):
        answer = f"{Decimal(short[1]):f}"
    elif _POINT.fullmatch(answer) and (short := _LOOSE.fullmatch(reference)):
        reference = f"{Decimal(short[1]):f}"
    if _COMMA.fullmatch(answer) and _POINT.fullmatch(reference):
        answer = answer.replace(",", ".")
    elif _COMMA.fullmatch(reference) and _POINT.fullmatch(answer):
        reference = reference.replace(",", ".")
    if r"\pi" in reference and r"\pi" not in answer:
        answer = _DEGREES.sub(r"\\frac{\1 \\pi}{180}", answer)
    elif r"\pi" in answer and r"\pi" not in reference:
        reference = _DEGREES.sub(r"\\frac{\1 \\pi}{180}", reference)
    return reference, answer


def _number(text: str) -> str:
    if _ZEROS.fullmatch(text):  # AIME writes 033: the integer 33
        return str(int(text))
    if grouped := _GROUPED.fullmatch(text):
        return re.sub("[ \u202f]", "", grouped[1]).replace(",", ".")
    if mixed := _MIXED.fullmatch(text):
        sign, whole, above, below = mixed.groups()
        return rf"{sign}\frac{{{int(whole) * int(below) + int(above)}}}{{{below}}}"
    return _SCIENTIFIC.sub(_power_of_ten, text)


def _power_of_ten(number: re.Match[str]) -> str:
    value = Decimal(number[1])
    if abs(value.adjusted()) <= 30:
        return f"{value:f}"
    coefficient, _, exponent = number[1].lower().partition("e")
    return rf"{coefficient} \times 10^{{{int(exponent)}}}"


def decide(reference: str, answer: str, equal: Equal, question: str = "") -> bool | None:
    """Return whether answer and reference are equal where that is decided without math-verify; None elsewhere.

    equal: compares parts of the answer. question: what it asks for may be the left side of an equation in the answer.
    """
    if _RANGE.fullmatch(reference.strip()):  # to math-verify 3-4 is -1
        return _dashed(reference) == _dashed(answer)
    words = _letters(reference), _letters(answer)
    if words[0] and words[1]:  # to math-verify, no = n*o = on
        turned = r"\angle" in reference + answer or r"\overline" in reference + answer
        return words[0] == words[1] or (turned and words[0] == words[1][::-1])
    bases = _BASE.findall(reference), _BASE.findall(answer)
    if bases[0] and bases[1] and [base for _, base in bases[0]] != [base for _, base in bases[1]]:
        return False
    bare = strip_typesetting(reference), strip_typesetting(answer)
    if _WORD.search(bare[0]) and _WORD.search(bare[1]):
        numbers = [_NUMBER.findall(side.replace(",", "")) for side in bare]
        if len(numbers[0]) > 1 and len(numbers[0]) == len(numbers[1]) and _things_differ(reference, answer):
            return False
    if not _OR.search(reference) and _OR.search(answer):
        return _every_way(reference, answer, equal)
    return _related(reference, answer, equal, question)


def _dashed(text: str) -> str:
    return re.sub(r"\s?(?:–|—|--|-|\bto\b)\s?", "-", exact_form(text))


def _letters(text: str) -> str:
    bare = strip_typesetting(_LINE_OF_POINTS.sub("", strip_typesetting(text))).strip("{}. ")
    return bare.replace(" ", "").casefold() if len(bare) > 1 and _LETTERS.fullmatch(bare) else ""


def _things_differ(reference: str, answer: str) -> bool:
    """Return whether lists of counted objects ("40 apples, 60 pears") differ in a number."""
    lists = [re.split(r",|;|\band\b", strip_typesetting(side)) for side in (reference, answer)]
    found = [[re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*[A-Za-z][A-Za-z ]*", part) for part in parts] for parts in lists]
    if not all(all(parts) for parts in found):
        return False
    values = [[float(part[1]) for part in parts if part] for parts in found]
    return sorted(values[0]) != sorted(values[1])


def _every_way(reference: str, answer: str, equal: Equal) -> bool:
    """Return whether an answer with "or" in it is right.

    Each alternative must be the reference, or all of them together a reference with many values.
    """
    ways = [_closed(way) for way in _OR.split(answer)]
    ways = [way for way in ways if way]
    if _MANY.search(reference) and equal(reference, ", ".join(ways)):
        return True
    return all(equal(reference, way) for way in ways) if ways else False


def _closed(way: str) -> str:
    way = way.strip(" ,;$~")
    if way.count("(") > way.count(")"):
        way = way.removesuffix("(") if way.endswith("(") else way.removeprefix("(")
    elif way.count(")") > way.count("("):
        way = way.removesuffix(")")
    return way.strip(" ,;$~")


def _related(reference: str, answer: str, equal: Equal, question: str) -> bool | None:
    """Decide answers with arrows, inequalities or equations whose reference has none."""
    if _ARROW.search(answer) and not _ARROW.search(reference):
        return False
    if _PLAIN.fullmatch(reference) and _INEQUALITY.search(answer):
        return False
    if _EQUALS.search(reference) or re.search("[,;]", answer):
        return None
    *before, last = _EQUALS.split(answer)
    asked = _squeezed(question)
    for side in before:
        named = re.search("[A-Za-z]", side) and not _OPERATOR.search(side)
        if not (named or (asked and _squeezed(side) in asked) or equal(last, side)):
            return False
    return None


def _squeezed(text: str) -> str:
    return re.sub(r"\\(?:left|right|,|!)|[\s$]", "", text)


def is_near(gold: Any, predicted: Any) -> bool:
    """Return whether numbers that math-verify calls equal are equal relative to their size.

    math-verify rounds to six decimals and truncates small numbers. True for what are no numbers. gold, predicted: what
    it parsed.
    """
    from sympy import FiniteSet, Float, Tuple

    if isinstance(gold, (FiniteSet, Tuple)) and isinstance(predicted, type(gold)) and len(gold) == len(predicted):
        return all(is_near(one, other) for one, other in zip(gold.args, predicted.args, strict=True))
    if not (getattr(gold, "is_number", False) and getattr(predicted, "is_number", False)):
        return True
    try:
        values = [side.doit().evalf(20) for side in (gold, predicted)]
        size = max(abs(value) for value in values)
        exact = not (gold.atoms(Float) or predicted.atoms(Float))
        # Six decimals of a value over 0.001 are at least three digits; exact values are exact at any size.
        return bool(size == 0 or abs(values[0] - values[1]) <= size * (EXACT if exact else RELATIVE))
    except (TypeError, ValueError, ArithmeticError, AttributeError):
        return True
