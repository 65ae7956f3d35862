r"""Reads and compares numbers with units, as models and data sets write them.

Examples are `27 cm`, `\frac{3}{4}\text{ miles}`, `\$1,\!657`, `3 \times 10^{5}\ \mathrm{m/s}`, `1\frac12`, `50\%`,
`12\sqrt{13}\text{ feet}`. Conversions are exact (pint, over fractions). Plain numbers are read here and units in
`units`; only what is no plain number goes to math-verify, in `expressions`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from ulorl.answers import units
from ulorl.answers.expressions import evaluate_latex
from ulorl.answers.normalisation import quantity_spelling
from ulorl.answers.units import LETTERS, MONEY, Unit

MAX_CHARACTERS = 1000  # of an answer that is read at all
NOISE = Fraction(1, 10**9)  # relative, of a decimal such as 1.4142135624 that approximates an irrational number
_CANCELLED = Fraction(1, 10**30)  # relative, of values that are no decimals: `expression.DIGITS` digits are computed
_MAX_PARTS = 4  # of 1 hour 5 minutes 3 seconds

_NOT_ONE = re.compile(r"\d[\d:]* ?(?:am|pm|a\.m\.?|p\.m\.?)|\d+:\d\d ?\S*|\d+ ?- ?\d+", re.IGNORECASE)  # times, ranges
_DIGITS = r"(?:\d{1,3}(?:[, ]\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+"
_NUMBER = re.compile(
    r"(?P<sign>[-+]?) ?(?:US)?(?P<money>[$€£¥]?) ?(?P<inner>[-+]?) ?(?:"
    r"(?:(?P<whole>\d+) ?)?\\frac ?\{ ?(?P<above>[-+]?\d+) ?\} ?\{ ?(?P<below>\d+) ?\}"
    r"|(?:(?P<whole2>\d+)[ -])?(?P<above2>\d+) ?/ ?(?P<below2>\d+)"
    r"|(?P<fixed>\d*\.\d*) ?\\overline ?\{ ?(?P<repeated>\d+) ?\}"
    rf"|(?P<plain>{_DIGITS})"
    r"(?:(?: ?[·x*]| ) ?10 ?(?:\^|\*\*) ?(?:\{ ?(?P<power>[-+]?\d{1,4}) ?\}|(?P<power2>[-+]?\d{1,4}))"
    r"|[eE](?P<power3>[-+]?\d{1,4}))?"
    r")(?![\d.,]*\d) ?"
)
_NUMERAL = re.compile(r"([-+]?)(\d+)_ ?\{? ?⟨?(\d{1,2})⟩? ?\}?")  # 1011_2
_UNIT_BEHIND = re.compile(rf"(.*?[\d}})A-Za-zπ]) ?(⟨.*|[%°].*|(?<![\\A-Za-z])[{LETTERS}][^\\{{}}()]*)")
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, "k": 3, "m": 6, "b": 9}
_SCALE = re.compile(r"[⟨ ]*(hundred|thousand|million|billion|trillion)(?![A-Za-z])", re.IGNORECASE)
_SCALE_OF_MONEY = re.compile(r"[⟨ ]*([kKMB])(?![A-Za-z])")  # $5M
_VARIABLE = re.compile(
    rf"(?<![\\A-Za-z])(?!(?:sqrt|pi)(?![A-Za-z])|(?<!\d)e(?![A-Za-z\d])|(?<=\d)[eE][-+]?\d)[{LETTERS}]|\.\d*\."
)
_PART = re.compile(rf"(?<=[{LETTERS}⟩°,.]) ?(?=\d)")  # where the next part of 2 hours 30 minutes begins
_AND = re.compile(r"[ ,⟨⟩]*(?:\band)?[ ,⟨⟩]*$")
_BARE: dict[Unit, str] = {(("coulomb", 1),): "degree_Celsius", (("farad", 1),): "degree_Fahrenheit"}


@dataclass(frozen=True)
class Quantity:
    """A number and its unit."""

    value: Fraction
    exact: bool  # False: an expression had to be computed
    unit: Unit = ()  # (): none is named
    known: bool = True  # whether pint knows it; "apples" it does not
    irrational: bool = False  # the value is rounded

    @property
    def decimal(self) -> bool:
        """Whether the value has finitely many decimal places, at least one: it may approximate an irrational number."""
        below = self.value.denominator
        return not self.irrational and below > 1 and pow(10, below.bit_length(), below) == 0


def read(text: str) -> Quantity | None:
    """Return the quantity that a text is, with nothing before or after it; None for any other text."""
    if len(text) > MAX_CHARACTERS:
        return None
    text = quantity_spelling(text)
    if _NOT_ONE.fullmatch(text):
        return None
    return _read(text) or _rounded(text)


def equal(
    reference: Quantity, answer: Quantity, relative: float = 0.0, absolute: float = 0.0, strict: bool = False
) -> bool:
    """Return whether both are the same, within max(absolute, relative x |reference|) in the reference's unit.

    A unit that only one side names is not compared: data sets leave it to the question. A quantity without dimension
    may be written out: 50% is also 0.5, and 180 degrees are pi. strict: an answer without the reference's unit is
    wrong. Quantities of other dimensions are wrong, and so are counts of other objects. 20 C is 20 coulombs, but
    compared with a temperature 20 °C.
    """
    noise = NOISE if reference.decimal or answer.decimal else _CANCELLED
    tolerance = (max(Fraction(relative), Fraction(0)), Fraction(absolute), noise)
    reference, answer = _temperature(reference, answer), _temperature(answer, reference)
    if reference.unit == answer.unit:
        return _near(reference, answer, *tolerance)
    if reference.unit and answer.unit:
        converted = _converted(answer, reference.unit) if reference.known and answer.known else None
        return converted is not None and _near(reference, converted, *tolerance)
    plain = [_converted(side, ()) if side.known else None for side in (reference, answer)]
    if plain[0] is not None and plain[1] is not None and _near(plain[0], plain[1], *tolerance):
        return True
    return not (strict and reference.unit) and _near(reference, answer, *tolerance)


def different(reference: Quantity, answer: Quantity) -> bool:
    """Return whether both certainly differ.

    That is known of plain numbers only, both without a unit or both with units of one dimension. A unit that only one
    side names may be what the question asks for.
    """
    if not (reference.exact and answer.exact and reference.known and answer.known):
        return False
    if not reference.unit and not answer.unit:
        return reference.value != answer.value
    if reference.unit != answer.unit and units.VAGUE & {name for name, _ in (*reference.unit, *answer.unit)}:
        return False
    converted = _converted(answer, reference.unit) if reference.unit and answer.unit else None
    return converted is not None and not _near(reference, converted, Fraction(0), Fraction(0), NOISE)


def _near(reference: Quantity, answer: Quantity, relative: Fraction, absolute: Fraction, noise: Fraction) -> bool:
    """Return whether both values agree within the tolerances, and within `noise` where one of them is irrational."""
    if reference.irrational or answer.irrational:
        relative = max(relative, noise)
    return abs(reference.value - answer.value) <= max(absolute, abs(reference.value) * relative)


def _converted(quantity: Quantity, unit: Unit) -> Quantity | None:
    """Return the quantity in another unit; None if dimensions differ. 0.7 radians are irrational in degrees."""
    found = units.converted(quantity.value, quantity.unit, unit)
    if found is None:
        return None
    return replace(quantity, value=found[0], unit=unit, irrational=quantity.irrational or not found[1])


def _temperature(side: Quantity, other: Quantity) -> Quantity:
    """C and F by themselves are coulombs and farads, but not where the other side is a temperature."""
    meant = _BARE.get(side.unit)
    return replace(side, unit=((meant, 1),)) if meant and units.is_temperature(other.unit) else side


def _read(text: str) -> Quantity | None:
    return _plain(text) or _numeral(text) or _parts(text) or _computed(text)


def _rounded(text: str) -> Quantity | None:
    """2/3 ≈ 0.67 is 2/3, once the second is the first in fewer places."""
    before, _, behind = text.partition("≈")
    first, second = (_read(side.strip()) for side in (before, behind))
    if not (first and second) or (first.unit and first.unit != second.unit):
        return None
    places = re.match(r"\D*\d*\.?(\d*)", behind)
    if abs(first.value - second.value) > Fraction(1, 10 ** len(places[1] if places else "")):
        return None
    return replace(first, unit=second.unit, known=second.known)


def _plain(text: str) -> Quantity | None:
    """Read a number with a unit, or without."""
    number = _NUMBER.match(text)
    value = _value(number) if number else None
    if number is None or value is None:
        return None
    unit = text[number.end() :]
    scale = _SCALE.match(unit) or (_SCALE_OF_MONEY.match(unit) if number["money"] else None)
    if scale:
        value, unit = value * 10 ** _SCALES[scale[1].casefold()], unit[scale.end() :]
    unit, money = unit.strip(" .;⟨⟩"), MONEY[number["money"]] if number["money"] else ""
    if money and re.match(r"/|(?:per|an?|each|every|apiece)\b", unit):  # $5 per hour
        unit = f"{number['money']} {unit}"
    named = units.read(unit or money)
    if named is None or (money and (money, 1) not in named[0]):  # $5, and $5 USD
        return None
    return Quantity(value, True, *named)


def _numeral(text: str) -> Quantity | None:
    """Digits in a base other than ten; the base counts as a unit, which only the question may name."""
    numeral = _NUMERAL.fullmatch(text)
    if numeral is None or not 1 < int(numeral[3]) <= 36 or max(map(int, numeral[2])) >= int(numeral[3]):
        return None
    value, base = Fraction(numeral[1] + numeral[2]), int(numeral[3])
    return Quantity(value, True) if base == 10 else Quantity(value, True, ((f"base {base}", 1),), known=False)


def _parts(text: str) -> Quantity | None:
    """2 hours 30 minutes: units of one dimension, each smaller than the one before."""
    parts = [_plain(_AND.sub("", part)) for part in _PART.split(text, maxsplit=_MAX_PARTS)]
    first, *others = parts
    if not others or first is None or not first.known or not first.unit:
        return None
    total, size = abs(first.value), Fraction(1)
    for part in others:
        if part is None or not part.known or not part.unit or part.value < 0:
            return None
        one = units.converted(Fraction(1), part.unit, first.unit)
        if one is None or not one[1] or one[0] >= size:
            return None
        total, size = total + part.value * one[0], one[0]
    return replace(first, value=-total if text.startswith("-") else total)


def _value(number: re.Match[str]) -> Fraction | None:
    sign = -1 if (number["sign"] == "-") != (number["inner"] == "-") else 1
    if number["plain"] is not None:
        power = int(number["power"] or number["power2"] or number["power3"] or 0)
        return sign * Fraction(re.sub("[, ]", "", number["plain"])) * Fraction(10) ** power
    if number["fixed"] is not None:
        places, period = len(number["fixed"].partition(".")[2]), 10 ** len(number["repeated"]) - 1
        return sign * (Fraction(f"0{number['fixed']}0") + Fraction(int(number["repeated"]), period * 10**places))
    above, below = int(number["above"] or number["above2"]), int(number["below"] or number["below2"])
    return sign * (int(number["whole"] or number["whole2"] or 0) + Fraction(above, below)) if below else None


def _computed(text: str) -> Quantity | None:
    """Read a quantity that is no plain number, such as 2^31-1 or 12√13 feet."""
    behind = _UNIT_BEHIND.fullmatch(text)
    for expression, unit in ([(behind[1], behind[2])] if behind else []) + [(text, "")]:
        named = units.read(unit)
        if named is None or re.search("[⟨⟩]", expression) or _VARIABLE.search(expression):
            continue
        found = evaluate_latex(expression.replace("·", r"\cdot "))
        if found is not None:
            return Quantity(found.value, False, *named, irrational=not found.exact)
    return None
