"""Reads and converts units of quantities: `cm`, `m s^-2`, `J/(kg K)`, `square feet`, `kΩ`, `dollars per hour`.

Conversions are exact (pint, over fractions) unless they involve π, as degrees to radians do. No evaluator of
expressions sees a unit: it is a product of words that pint knows, with exponents of one digit.
`normalisation.quantity_spelling` converts LaTeX into this form, with groups of roman text between ⟨ and ⟩.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

Factor = tuple[str, int]
Unit = tuple[Factor, ...]  # words and exponents; (): none

MAX_CHARACTERS = 60
LETTERS = "A-Za-zµμΩÅ"  # that unit symbols are made of
MONEY = {"$": "dollar", "€": "euro", "£": "pound_sterling", "¥": "yen", "¢": "cent"}
VAGUE = {"ton", "calorie", "month", "year"}  # in pint's names: how much they are depends on who says it

_NO_UNIT = re.compile(r"(?:(?:square|cubic|sq|cu)\.? ?)?(?:units?|un\.?)(?: ?(?:\^ ?[23]|squared|cubed))?")
_ALIASES = (  # in this order
    (re.compile(r"° ?c\b|\bdeg(?:rees?)?[ .]*c(?:elsius)?\b|\b(?:cel[sc]ius|centigrade)\b", re.IGNORECASE), "degC"),
    (re.compile(r"° ?f\b|\bdeg(?:rees?)?[ .]*f(?:ahrenheit)?\b|\bfahrenheit\b", re.IGNORECASE), "degF"),
    (re.compile(r"\bdegrees? degC"), "degC"),
    (re.compile(r"° ?K\b"), "K"),
    (re.compile(r"°"), " degree "),
    (re.compile(r"%|\bper ?cent\b", re.IGNORECASE), " percent "),
    (re.compile(r"[$€£¥¢]"), lambda sign: f" {MONEY[sign[0]]} "),
    (re.compile(r"\b(?:sq|square)\b\.?", re.IGNORECASE), "square"),
    (re.compile(r"\b(?:cu|cubic)\b\.?", re.IGNORECASE), "cubic"),
    (re.compile(r"\brevs?\b(?!\.\w)"), "revolution"),
    (re.compile(r"\bamps\b", re.IGNORECASE), "ampere"),  # pint reads attometres per second
    (re.compile(r"\bmm Hg\b"), "mmHg"),
    (re.compile(r"\bkmh|\bkph\b", re.IGNORECASE), "km/h"),
    (re.compile(r"\b(?:ft|foot|feet)[-·*. ]*(?:lbf?s?|pounds?)\b"), "foot_pound"),  # in this order always energy
    (re.compile(r"\b(?:lbf?s?|pounds?)[-·*. ]*(?:ft|foot|feet)\b(?! ?[/^])"), "foot_pound"),
    (re.compile(r"\bK(?=(?:[gmWJVNM]|Pa|Hz|mol)\b)"), "k"),  # Kg, KJ
    (
        re.compile(r"\b([kMmµμ]?N)(m|s)\b|\b([kM]?J)(mol|kg|K)\b|\b(Pa)(s)\b|\b(kg)(m)\b"),
        r"\1\3\5\7 \2\4\6\8",
    ),  # pint reads Nm its way
    (re.compile(rf"(?<=[{LETTERS}.])-(?=[{LETTERS}])"), " "),  # kW-h
    (re.compile(r"(?<=\S) (?:each|apiece)$"), ""),
    (re.compile(r"\bper\b|\b(?:an?|each|every)\b(?= [a-z])", re.IGNORECASE), "/"),
)
_TOKEN = re.compile(
    rf"\s*(?:(?P<word>[{LETTERS}_]+)(?P<direct>(?:[23]|-[1-9])(?!\d))?\.?"
    r"|(?:\^|\*\*) ?[({]? ?(?P<power>[-+]?\d) ?[)}]?(?!\d)|(?P<sign>[*/·()]))"
)
_POWERS = {"square": 2, "cubic": 3}
_POWERS_BEHIND = {"squared": 2, "cubed": 3}
_SINGLE = frozenset("mgshlLANJWVKCFTHSMΩÅ")  # of one letter, these are units; any other is a variable
_NO_THING = {"or", "and", "not", "to", "than", "is", "by", "but"}
_WORDS = 4  # of a counted object, as in "distinct integers"
_OFFSET = {"degree_Celsius", "degree_Fahrenheit"}
_BITS_BELOW_PI = 100  # a factor of more bits, tens aside, holds π, which pint has to 50 digits


@lru_cache(maxsize=4096)
def read(text: str) -> tuple[Unit, bool] | None:
    """Return the unit that a text names: its factors, and whether pint knows them.

    () for no unit; None for a text that is not a unit.
    """
    text = re.sub(r"[⟨⟩]", " ", text).strip(" .;")
    if len(text) > MAX_CHARACTERS:
        return None
    if not text or _NO_UNIT.fullmatch(text.casefold()):
        return (), True
    text = re.sub(" +", " ", text)
    for pattern, spelling in _ALIASES:
        text = pattern.sub(spelling, text)
    factors = _factors(text.strip())
    return _named(factors) if factors is not None else None


def _factors(text: str) -> list[Factor] | None:
    """The words with their exponents. A slash divides by everything up to the next bracket, as in J/mol·K."""
    factors, at, sign, outer, pending = list[Factor](), 0, 1, 1, 1
    group, last = 0, 0  # where the bracket begins, and what an exponent holds for
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            return None
        at = token.end()
        if (word := token["word"]) in _POWERS:
            pending = _POWERS[word]
        elif word in _POWERS_BEHIND:
            factors[last:] = _raised(factors[last:], _POWERS_BEHIND[word])
        elif word:
            last = len(factors)
            factors.append((word, outer * sign * pending * int(token["direct"] or 1)))
            pending = 1
        elif token["power"]:
            if not factors:
                return None
            factors[last:] = _raised(factors[last:], int(token["power"]))
        elif token["sign"] == "/":
            sign = -1
        elif token["sign"] == "(":
            group, outer, sign = len(factors), sign, 1
        elif token["sign"] == ")":
            last, outer, sign = group, 1, 1
    return factors


def _raised(factors: list[Factor], power: int) -> list[Factor]:
    return [(word, exponent * power) for word, exponent in factors]


def _named(factors: list[Factor]) -> tuple[Unit, bool] | None:
    known = [_known(word) for word, _ in factors]
    if all(known):
        merged: dict[str, int] = {}
        for name, (_, power) in zip(known, factors, strict=True):
            if name in _OFFSET and (len(factors) > 1 or power != 1):
                name = f"delta_{name}"  # J/°C is J/K
            merged[name] = merged.get(name, 0) + power
        return tuple(sorted(merged.items())), True
    if len(factors) > _WORDS or any(len(word) < 2 and not known[at] for at, (word, _) in enumerate(factors)):
        return None
    words = [(word.casefold(), power) for word, power in factors]
    if any(word in _NO_THING for word, _ in words):
        return None
    return tuple((word.removesuffix("s") if len(word) > 2 else word, power) for word, power in words), False


@lru_cache(maxsize=4096)
def _known(word: str) -> str:
    """Return pint's name of a unit; "" when it knows none."""
    import pint

    if len(word) > 30 or (len(word) == 1 and word not in _SINGLE):
        return ""
    for spelling in (word, word.casefold()) if len(word) > 2 else (word,):
        try:
            return str(_registry().get_name(spelling))
        except pint.errors.UndefinedUnitError:
            continue
    return ""


@lru_cache(maxsize=1)
def _registry() -> Any:
    import pint

    registry: Any = pint.UnitRegistry(non_int_type=Fraction, cache_folder=None)
    for line in (
        "dollar = [dollars] = USD = usd",
        "cent = 0.01 * dollar",
        "euro = [euros] = EUR",
        "pound_sterling = [pounds_sterling] = GBP",
        "yen = [yens] = JPY",
        "acre = 43560 * foot ** 2",  # pint has the survey foot's
    ):
        registry.define(line)
    return registry


def converted(value: Fraction, unit: Unit, other: Unit) -> tuple[Fraction, bool] | None:
    """Return the value in another unit, and whether it is exact; None where the dimensions differ."""
    found, one = _converted(value, unit, other), _converted(Fraction(1), unit, other)
    return None if found is None or one is None else (found, _bits(one) <= _BITS_BELOW_PI)


def _converted(value: Fraction, unit: Unit, other: Unit) -> Fraction | None:
    import pint

    registry = _registry()
    sides = [registry.Unit(pint.util.UnitsContainer(dict(side))) for side in (unit, other)]
    try:
        return Fraction(registry.Quantity(value, sides[0]).to(sides[1]).magnitude)
    except (pint.errors.PintError, ArithmeticError, ValueError, TypeError):
        return None


def _bits(factor: Fraction) -> int:
    """Return the bits of the longer of numerator and denominator, without the factors 2 and 5."""
    longest = 0
    for whole in (abs(factor.numerator), factor.denominator):
        for prime in (2, 5):
            while whole and whole % prime == 0:
                whole //= prime
        longest = max(longest, whole.bit_length())
    return longest


def is_temperature(unit: Unit) -> bool:
    """Return whether a unit is degrees Celsius, degrees Fahrenheit or kelvins."""
    return len(unit) == 1 and unit[0] in {("degree_Celsius", 1), ("degree_Fahrenheit", 1), ("kelvin", 1)}
