"""Rational numbers, with a unit or a percent sign: reads and changes them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from random import Random

from ulorl.answers import quantities
from ulorl.verifier.transforms.question_form import rounded
from ulorl.verifier.transforms.unit_systems import Unit, asked, of_factors, other_kind

MOST_DIGITS = 12  # of a number that is spelled
_PLAIN = re.compile(r"-?\d+")
_E_NOTATION = re.compile(
    r"-?\d+\.\d+[eE][-+]?\d{1,3}|-?\d+(?:\.\d+)?[eE][-+]?\d\d\d?|-?\d+E[-+]?\d{1,3}"
)  # 2e-3 may be 2e - 3
_PERCENT_ASKED = re.compile(r"percent|%")


@dataclass(frozen=True)
class Number:
    r"""A rational number. value: 0.5 for 50\%, where `percent` says that the reference or the question uses percent."""

    value: Fraction
    unit: Unit | None = None
    percent: bool = False
    percent_fits: bool = True  # whether it may be written in percent
    form: str = "integer"  # of the reference: integer, decimal or fraction
    error: Fraction = Fraction(0)  # of a rounded reference: half of its last digit
    named: bool = False  # whether the reference itself names unit or percent

    @property
    def plain(self) -> bool:
        """Return whether the number is an integer without unit, percent sign or other form."""
        return self.form == "integer" and self.unit is None and not self.percent


def read(text: str, question: str) -> Number | None:
    """Return the number that a reference is, None for anything else. Roots and the like are expressions, not
    numbers. Leading zeros are digits that a question asks for (the last three digits)."""
    if re.match(r"-?0\d", text):
        return None
    if not _E_NOTATION.fullmatch(text) and re.search(
        r"[_!ei]|\\(?:pi|sqrt|text\{? ?or)", re.sub(r"\\[a-z]*\{[^}]*\}|[a-zA-Z]{2,}", "", text)
    ):
        return None
    found = quantities.read(text)
    if found is None or not found.exact or not found.known:
        return None
    if max(len(str(found.value.numerator)), len(str(found.value.denominator))) > MOST_DIGITS:
        return None
    number = _understood(found, question)
    if number is None:
        return None
    places = re.search(r"(?:\d|^\s*-?)\.(\d+)", text)
    form = "decimal" if places else "integer" if found.value.denominator == 1 else "fraction"
    if form == "fraction" or "e" in text.lower() or not (places or rounded(question)):
        return replace(number, form=form)
    digit = Fraction(1, 10 ** len(places[1]) if places else 1) / (100 if number.percent else 1)
    return replace(number, form=form, error=digit / 2)


def _understood(found: quantities.Quantity, question: str) -> Number | None:
    """Return the number with its unit or percent sign, or the question's; None for a unit that is not converted."""
    if found.unit == (("percent", 1),):
        return Number(found.value / 100, percent=True, named=True)
    if found.unit:
        unit = of_factors(found.unit)
        if unit is None or other_kind(unit.name, question):
            return None
        return Number(found.value, unit, percent_fits=False, named=True)
    last = question.strip().rsplit(". ", 1)[-1].lower()
    if re.search(r"(?:what|find the|how many) percent|as a percent|in percent", last):
        return Number(found.value / 100, percent=True)
    return Number(found.value, asked(question), percent_fits=not _PERCENT_ASKED.search(question.lower()))


def decimal(value: Fraction, most: int = 8) -> str | None:
    """Return a terminating decimal with at most so many places, None for other numbers."""
    for places in range(most + 1):
        scaled = value * 10**places
        if scaled.denominator == 1:
            digits = f"{abs(scaled.numerator):0{places + 1}}"
            sign = "-" if value < 0 else ""
            return sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)
    return None


def kinds(number: Number) -> list[str]:
    """Return the kinds of spelling that a number can have; not every value has all of them."""
    found = ["same", "spelling", "words"]
    if number.unit:
        found.append("units")
    if number.form != "integer":
        found += ["fraction", "decimal"] if not number.percent else []
    if number.percent or (number.percent_fits and number.form != "integer" and abs(number.value) <= 2):
        found.append("percent")
    if number.unit is None and not number.percent:
        found.append("scientific")
    return found


def changes(number: Number, kind: str) -> list[str]:
    """Return the changes of the value that keep it similar in this kind of spelling."""
    found = ["sign", "off_by_one", "digits", "dropped_digit", "near"]
    if number.value.denominator != 1 and number.form == "fraction":
        found += ["inverse", "inverse", "part", "part"]
    if kind in ("percent", "scientific", "decimal", "units"):
        found += ["factor"] * 3
    if kind == "units" and number.unit and number.unit.related():
        found += ["unit"] * 4
    return found


def change(number: Number, how: str, rng: Random) -> Number | None:
    """Return another number, None where the change is impossible."""
    value, scale = number.value, 100 if number.percent else 1
    shown = value * scale
    new: Fraction | None
    if how == "unit" and number.unit:
        if not value:
            return None
        return replace(number, unit=rng.choice(number.unit.related()))
    if how == "sign":
        new = -shown if not number.unit and not number.percent else None
    elif how == "off_by_one":
        new = shown + rng.choice((-1, 1))
    elif how == "inverse":
        new = 1 / shown if shown else None
    elif how == "part":
        new = _part(shown, rng)
    elif how == "factor":
        powers = (1, -1, 2, -2, 3) if number.percent_fits and not number.percent else (1, -1, 3)
        new = shown * Fraction(10) ** rng.choice(powers)
    else:
        new = _other_digits(shown, how, rng, number.form == "fraction" and rng.random() < 0.8)
    if new is None or abs(new - shown) <= number.error * scale or (new < 0 < shown and how != "sign"):
        return None
    return replace(number, value=new / scale)


def _part(value: Fraction, rng: Random) -> Fraction | None:
    above, below, step = value.numerator, value.denominator, rng.choice((-1, 1))
    above, below = (above + step, below) if rng.random() < 0.5 else (above, below + step)
    return Fraction(above, below) if below > 0 and above else None


def _other_digits(value: Fraction, how: str, rng: Random, parts: bool) -> Fraction | None:
    """Two digits swapped, one dropped or doubled, or one changed by one."""
    text = decimal(value, 6)
    if text and not parts:
        return _digits_of(text, how, rng)
    above, below = str(value.numerator), str(value.denominator)
    if rng.random() < 0.5:
        new = _digits_of(above, how, rng)
        return new / value.denominator if new else None
    new = _digits_of(below, how, rng)
    return value.numerator / new if new else None


def _digits_of(text: str, how: str, rng: Random) -> Fraction | None:
    places = [i for i, sign in enumerate(text) if sign.isdigit()]
    digits = list(text)
    at = rng.choice(places)
    if how == "digits":
        pairs = [(a, b) for a, b in pairwise(places) if text[a] != text[b]]
        if not pairs:
            return None
        a, b = rng.choice(pairs)
        digits[a], digits[b] = digits[b], digits[a]
    elif how == "dropped_digit":
        digits[at] = "" if rng.random() < 0.5 and len(places) > 1 else text[at] * 2
    else:
        digits[at] = str((int(text[at]) + rng.choice((1, -1))) % 10)
    new = "".join(digits)
    if re.match(r"-?0\d", new) or not re.fullmatch(r"-?\d+(?:\.\d+)?", new):
        return None
    return Fraction(new)
