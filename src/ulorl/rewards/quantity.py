r"""Numbers with units, as models and data sets write them: `27 cm`, `\frac{3}{4}\text{ miles}`, `\$1,\!657`, `3 \times
10^{5}\ \mathrm{m/s}`, `1\frac12`, `50\%`, `12\sqrt{13}\text{ feet}`. Conversions are exact (pint, over fractions).

Plain numbers are read here; only what is none goes to math-verify. Nothing is handed to an evaluator of expressions: a
unit is a product of words that pint knows, with exponents of one digit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from ulorl.rewards.text import LAYERS

MAX_CHARACTERS = 1000  # of an answer that is read at all
MAX_UNIT_CHARACTERS = 60
NOISE = Fraction(1, 10**9)  # relative, where a value had to be computed in floating point

_SPELLINGS = (  # in this order
    (re.compile(r"[−–]"), "-"),
    (re.compile(r"\\(?:left|right|displaystyle|big|Big)(?![A-Za-z])"), ""),
    (re.compile(r"\\(?:text|textbf|textrm|textnormal|textit|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}"), r"⟨\1⟩"),
    (re.compile(r"(?<=\d)(?:,\\!|\{,\}|\\,|\\!|\\ |\u2009|\u202f)(?=\d{3}(?!\d))"), ","),
    (re.compile(r"\\[,;:! ]|~|\\q?quad(?![A-Za-z])|\s"), " "),
    (re.compile(r"\\(?:approx|simeq|sim)(?![A-Za-z])"), "≈"),
    (re.compile(r"\s*\^\s*\{?\s*\\circ\s*\}?|\\degree(?![A-Za-z])|º|\\circ(?![A-Za-z])"), "°"),
    (re.compile(r"\\[dtc]frac"), r"\\frac"),
    (re.compile(r"\\frac\s*(\d)\s*(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*\{([^{}]*)\}\s*(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\\(?:cdot|times)(?![A-Za-z])"), "·"),
    (re.compile(r"²"), "^2"),
    (re.compile(r"³"), "^3"),
    (re.compile(r" +"), " "),
)
_SAID = re.compile(r"(?:[A-Za-z]\w{0,9}\s?=|≈|=|about |approximately |roughly )\s?", re.IGNORECASE)
_NOT_ONE = re.compile(r"\d[\d:]* ?(?:am|pm|a\.m\.?|p\.m\.?)|\d+:\d\d ?\S*|\d+ ?- ?\d+", re.IGNORECASE)  # times, ranges
_DIGITS = r"(?:\d{1,3}(?:[, ]\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+"
_NUMBER = re.compile(
    r"(?P<sign>[-+]?) ?(?P<money>[$€£¥]?) ?(?P<inner>[-+]?) ?(?:"
    r"(?:(?P<whole>\d+) ?)?\\frac ?\{ ?(?P<above>[-+]?\d+) ?\} ?\{ ?(?P<below>\d+) ?\}"
    r"|(?:(?P<whole2>\d+)[ -])?(?P<above2>\d+) ?/ ?(?P<below2>\d+)"
    rf"|(?P<plain>{_DIGITS})"
    r"(?: ?[·×x*] ?10 ?(?:\^|\*\*) ?(?:\{ ?(?P<power>[-+]?\d{1,4}) ?\}|(?P<power2>[-+]?\d{1,4}))"
    r"|[eE](?P<power3>[-+]?\d{1,4}))?"
    r")(?![\d.,]*\d) ?"
)
_UNIT_BEHIND = re.compile(r"(.*?[\d})A-Za-zπ]) ?(⟨.*|[%°].*|(?<![\\A-Za-z])[A-Za-zµμΩ][^\\{}()]*)")
_MONEY = {"$": "dollar", "€": "euro", "£": "pound_sterling", "¥": "yen", "¢": "cent"}
_NO_UNIT = re.compile(r"(?:(?:square|cubic|sq|cu)\.? ?)?(?:units?|un\.?)(?: ?(?:\^ ?[23]|squared|cubed))?")
_ALIASES = (
    (re.compile(r"° ?c\b|\bdeg(?:rees?)? (?:c|celsius)\b|\bcelsius\b", re.IGNORECASE), "degC"),
    (re.compile(r"° ?f\b|\bdeg(?:rees?)? (?:f|fahrenheit)\b|\bfahrenheit\b", re.IGNORECASE), "degF"),
    (re.compile(r"°"), " degree "),
    (re.compile(r"%|\bper ?cent\b", re.IGNORECASE), " percent "),
    (re.compile(r"[$€£¥¢]"), lambda sign: f" {_MONEY[sign[0]]} "),
    (re.compile(r"\b(?:sq|square)\b\.?", re.IGNORECASE), "square"),
    (re.compile(r"\b(?:cu|cubic)\b\.?", re.IGNORECASE), "cubic"),
    (re.compile(r"\bamps\b", re.IGNORECASE), "ampere"),  # pint reads attometres per second
    (re.compile(r"\bkmh|\bkph\b", re.IGNORECASE), "km/h"),
    (re.compile(r"\bper\b", re.IGNORECASE), "/"),
)
_UNIT_TOKEN = re.compile(
    r"\s*(?:(?P<word>[A-Za-zµμΩ_]+)\.?|(?:\^|\*\*) ?\{? ?(?P<power>-?\d) ?\}?(?!\d)|(?P<sign>[*/·()]))"
)
_POWERS = {"square": 2, "cubic": 3}
_POWERS_BEHIND = {"squared": 2, "cubed": 3}
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALE = re.compile(rf"[⟨ ]*({'|'.join(_SCALES)})(?![A-Za-z])", re.IGNORECASE)
_VARIABLE = re.compile(r"(?<![\\A-Za-z])(?!(?:sqrt|pi)(?![A-Za-z])|(?<!\d)e(?![A-Za-z\d]))[A-Za-z]|\.\d*\.")
_LETTERS = frozenset("mgshlLANJWVKCFTΩ")  # of one letter, these are units; any other is a variable
_VAGUE = {"ton", "calorie", "month", "year"}  # in pint's names: how much they are depends on who says it
_WORDS = 4  # of a thing that is counted, as in "distinct integers"
Factor = tuple[str, int]


@dataclass(frozen=True)
class Quantity:
    """A number and its unit."""

    value: Fraction
    exact: bool  # False: computed in floating point
    unit: tuple[Factor, ...] = ()  # words and exponents; (): none is named
    known: bool = True  # whether pint knows it; "apples" it does not


def read(text: str) -> Quantity | None:
    """The quantity that a text is, nothing before and nothing behind; None for any other text."""
    if len(text) > MAX_CHARACTERS:
        return None
    text = _simple(text)
    if _NOT_ONE.fullmatch(text):
        return None
    if number := _NUMBER.match(text):
        value, unit = _value(number), text[number.end() :]
        if value is not None and (scale := _SCALE.match(unit)):
            value, unit = value * 10 ** _SCALES[scale[1].casefold()], unit[scale.end() :]
        money = _MONEY[number["money"]] if number["money"] else ""
        named = _unit(unit.strip(" .⟨⟩") or money)
        if value is not None and named is not None and (not money or named[0] == ((money, 1),)):  # $5, and $5 USD
            return Quantity(value, True, *named)
    return _computed(text)


def equal(
    reference: Quantity, answer: Quantity, relative: float = 0.0, absolute: float = 0.0, strict: bool = False
) -> bool:
    """Whether they are the same, within max(absolute, relative x |reference|), in the reference's unit.

    A unit that one side only names is not compared: data sets leave it to the question. What has no dimension may be
    written out: 50% is 0.5 too, and 180 degrees are pi. strict: an answer without the reference's unit is wrong.
    Other dimensions are wrong, and so are other things counted.
    """
    tolerance = (max(Fraction(relative), Fraction(0)), Fraction(absolute), reference.exact and answer.exact)
    if reference.unit == answer.unit:
        return _near(reference.value, answer.value, *tolerance)
    if reference.unit and answer.unit:
        converted = _converted(answer, reference.unit) if reference.known and answer.known else None
        return converted is not None and _near(reference.value, converted, *tolerance)
    plain = [_converted(side, ()) if side.known else None for side in (reference, answer)]
    if plain[0] is not None and plain[1] is not None and _near(plain[0], plain[1], *tolerance):
        return True
    return not (strict and reference.unit) and _near(reference.value, answer.value, *tolerance)


def different(reference: Quantity, answer: Quantity) -> bool:
    """Whether they are surely not the same: plain numbers both, without a unit both or with units of one dimension. A
    unit that one side only names may be what the question asks for."""
    if not (reference.exact and answer.exact and reference.known and answer.known):
        return False
    if not reference.unit and not answer.unit:
        return reference.value != answer.value
    if reference.unit != answer.unit and _VAGUE & {name for name, _ in (*reference.unit, *answer.unit)}:
        return False
    converted = _converted(answer, reference.unit) if reference.unit and answer.unit else None
    return converted is not None and converted != reference.value


def _near(reference: Fraction, answer: Fraction, relative: Fraction, absolute: Fraction, exact: bool) -> bool:
    allowed = max(absolute, abs(reference) * (relative if exact else max(relative, NOISE)))
    return abs(reference - answer) <= allowed


def _simple(text: str) -> str:
    """One spelling for what LaTeX and people write in many."""
    text = text.strip().strip("*`").strip()
    for opening, closing in ((r"\(", r"\)"), (r"\[", r"\]")):
        text = text.removeprefix(opening).removesuffix(closing)
    if len(re.findall(r"(?<!\\)\$", text)) % 2 == 0:
        text = re.sub(r"(?<!\\)\$", "", text)
    text = text.replace(r"\$", "$")
    for pattern, spelling in _SPELLINGS:
        text = pattern.sub(spelling, text)
    text = text.strip().rstrip(".,;").strip()
    for _ in range(LAYERS):
        if not (said := _SAID.match(text)):
            break
        text = text[said.end() :]
    return text


def _value(number: re.Match[str]) -> Fraction | None:
    sign = -1 if (number["sign"] == "-") != (number["inner"] == "-") else 1
    if number["plain"] is not None:
        power = int(number["power"] or number["power2"] or number["power3"] or 0)
        return sign * Fraction(re.sub("[, ]", "", number["plain"])) * Fraction(10) ** power
    above, below = int(number["above"] or number["above2"]), int(number["below"] or number["below2"])
    return sign * (int(number["whole"] or number["whole2"] or 0) + Fraction(above, below)) if below else None


def _computed(text: str) -> Quantity | None:
    """What is no plain number, such as 12√13 feet: its value is sympy's, to 17 digits."""
    behind = _UNIT_BEHIND.fullmatch(text)
    for expression, unit in ([(behind[1], behind[2])] if behind else []) + [(text, "")]:
        named = _unit(unit)
        if named is None or "⟨" in expression or _VARIABLE.search(expression):
            continue
        value = _evaluated(expression.replace("·", r"\cdot "))
        if value is not None:
            return Quantity(value, False, *named)
    return None


def _evaluated(expression: str) -> Fraction | None:
    from math_verify import LatexExtractionConfig, parse

    try:
        found = parse(rf"\boxed{{{expression}}}", [LatexExtractionConfig()], parsing_timeout=None)
        value = complex(found[0].evalf(17)) if found and not getattr(found[0], "free_symbols", True) else None
        return Fraction(value.real) if value is not None and value.imag == 0 else None
    except Exception:  # sympy and its reader of LaTeX raise what they like; then it is no number
        return None


@lru_cache(maxsize=4096)
def _unit(text: str) -> tuple[tuple[Factor, ...], bool] | None:
    """The unit a text names: its factors, and whether they are known; () for none; None for what is no unit."""
    text = re.sub(r"[⟨⟩]", " ", text).strip(" .")
    if len(text) > MAX_UNIT_CHARACTERS:
        return None
    if not text or _NO_UNIT.fullmatch(text.casefold()):
        return (), True
    for pattern, spelling in _ALIASES:
        text = pattern.sub(spelling, text)
    text = text.strip()
    factors, at, sign, group, pending = list[Factor](), 0, 1, 1, 1
    while at < len(text):
        token = _UNIT_TOKEN.match(text, at)
        if token is None:
            return None
        at = token.end()
        if word := token["word"]:
            if word in _POWERS:
                pending = _POWERS[word]
            elif word in _POWERS_BEHIND and factors:
                factors[-1] = (factors[-1][0], factors[-1][1] * _POWERS_BEHIND[word])
            else:
                factors.append((word, sign * group * pending))
                sign = pending = 1
        elif token["power"]:
            if not factors:
                return None
            factors[-1] = (factors[-1][0], factors[-1][1] * int(token["power"]))
        elif token["sign"] == "/":
            sign = -1
        elif token["sign"] == "(":
            group, sign = sign, 1
        elif token["sign"] == ")":
            group = 1
    return _named(factors)


def _named(factors: list[Factor]) -> tuple[tuple[Factor, ...], bool] | None:
    known = [_known(word) for word, _ in factors]
    if all(known):
        return tuple(sorted((name, power) for name, (_, power) in zip(known, factors, strict=True) if name)), True
    if len(factors) > _WORDS or any(len(word) < 2 for word, _ in factors):
        return None
    return tuple((word.casefold().removesuffix("s"), power) for word, power in factors), False


@lru_cache(maxsize=4096)
def _known(word: str) -> str:
    """pint's name of a unit; "" when it knows none."""
    import pint

    if len(word) > 30 or (len(word) == 1 and word not in _LETTERS):
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


def _converted(quantity: Quantity, unit: tuple[Factor, ...]) -> Fraction | None:
    """The value in another unit; None where the dimensions differ."""
    import pint

    registry = _registry()
    units = [registry.Unit(pint.util.UnitsContainer(dict(_merged(side)))) for side in (quantity.unit, unit)]
    try:
        return Fraction(registry.Quantity(quantity.value, units[0]).to(units[1]).magnitude)
    except (pint.errors.PintError, ArithmeticError, ValueError, TypeError):
        return None


def _merged(factors: tuple[Factor, ...]) -> dict[str, int]:
    merged: dict[str, int] = {}
    for name, power in factors:
        merged[name] = merged.get(name, 0) + power
    return merged
