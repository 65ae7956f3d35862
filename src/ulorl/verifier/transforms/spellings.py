"""Spells a rational number: as fraction, decimal, percentage, power of ten, in words, with another unit."""

from __future__ import annotations

import re
from fractions import Fraction
from random import Random

from ulorl.verifier.transforms import number_words
from ulorl.verifier.transforms.rationals import MOST_DIGITS, Number, decimal
from ulorl.verifier.transforms.unit_systems import Unit


def spell(number: Number, kind: str, rng: Random) -> str | None:
    """Return the number in a kind of spelling, None where it has none."""
    value = number.value
    if kind == "units":
        return _with_unit(number, rng)
    if kind == "percent" or number.percent:
        return _percent(number, kind, rng)
    if kind == "fraction":
        return _as_fraction(number, rng)
    if kind == "decimal":
        if value.denominator == 1:
            return None
        text = decimal(value) or repeating(value)
        return text and (f"{text}0" if "overline" not in text and rng.random() < 0.3 else text)
    if kind == "scientific":
        return scientific(value, rng)
    if kind == "words":
        text = number_words.spoken(value, rng)
        if text and number.unit and rng.random() < 0.5 and number.unit.power == 1:
            one = value.denominator != 1 and abs(value) < 1
            text = f"{text} of {_article(number.unit)}" if one else f"{text} {number.unit.names(value)[0]}"
        return text and rng.choice((*[text] * 7, text.capitalize(), text.capitalize(), f"\\text{{{text}}}"))
    return _respelled(number, rng)


def _as_fraction(number: Number, rng: Random) -> str | None:
    """Return a mixed number, or a fraction where the reference is none."""
    if number.value.denominator == 1:
        return None
    text = mixed(number.value, rng)
    if number.form == "fraction" or (text and rng.random() < 0.5):
        return text
    return fraction(number.value, rng)


def _article(unit: Unit) -> str:
    name = unit.names(Fraction(1))[0]
    return f"an {name}" if name in ("hour", "ounce", "inch") else f"a {name}"


def _respelled(number: Number, rng: Random) -> str:
    value = number.value
    text = decimal(value, 6) if number.form != "fraction" else None
    if text is None:
        return fraction(value, rng)
    shapes = [text]
    if abs(value) >= 1000:
        shapes = [grouped(text, mark) for mark in (",", "{,}", ",\\!", "\\,", " ")] + [text]
    elif "." not in text and rng.random() < 0.4:
        shapes = [f"{text}.0", f"{text}.00", f"{text}."]
    elif "." in text:
        shapes = [f"{text}0", f"{text}00", text]
        if abs(value) < 1:
            shapes.append(text.replace("0.", ".", 1))
    return rng.choice(shapes)


def _percent(number: Number, kind: str, rng: Random) -> str | None:
    if kind == "words":
        text = number_words.spoken(number.value * 100, rng)
        return text and f"{text} percent"
    hundredths = number.value * 100
    body = decimal(hundredths, 4) or repeating(hundredths) or fraction(hundredths, rng)
    if kind == "spelling":
        return body
    if number.named and rng.random() < 0.4:
        return decimal(number.value) or fraction(number.value, rng)
    return body + rng.choice(("%", "\\%", " percent", " \\%", "\\text{ percent}", " per cent"))


def _with_unit(number: Number, rng: Random) -> str | None:
    assert number.unit is not None
    if number.unit.system[0] == "angle":
        return _angle(number.value, rng)
    base = number.value * number.unit.factor
    choices = []
    for unit in number.unit.related():
        value = base / unit.factor
        text = decimal(value, 4)
        if value and Fraction(1, 1000) <= abs(value) and len((text or "x" * 99).replace(".", "")) <= 8:
            choices.append((unit, value))
    whole = number.value.denominator == 1 or decimal(number.value, 4) is not None
    if (not choices or rng.random() < 0.35) and (whole or number.form == "fraction"):
        choices = [(number.unit, number.value)]
    if not choices:
        return None
    if rng.random() < 0.25 and (compound := _compound(base, number.unit, rng)):
        return compound
    unit, value = rng.choice(choices)
    return _attached(value, unit, rng)


def _attached(value: Fraction, unit: Unit, rng: Random) -> str:
    text, cents = written(value, rng), decimal(value, 2)
    if unit.name == "dollar" and value > 0 and cents and rng.random() < 0.75:
        padded = f"{cents.partition('.')[0]}.{cents.partition('.')[2]:0<2}"
        return rng.choice(("$", "\\$")) + rng.choice((text, padded, padded if "." in cents else cents))
    name = rng.choice(unit.names(value))
    shapes = [f"{text} {name}"] * 2 + [f"{text}\\text{{ {name}}}", f"{text}\\ \\text{{{name}}}"]
    if "^" in name:
        short, _, power = name.partition("^")
        shapes = [f"{text} {name}", f"{text}\\text{{ {short}}}^{power}", f"{text}\\ \\mathrm{{{short}}}^{{{power}}}"]
    elif name.isalpha() and len(name) <= 3:
        shapes += [f"{text}{name}", f"{text}\\,\\mathrm{{{name}}}"]
    return rng.choice(shapes)


def _angle(value: Fraction, rng: Random) -> str | None:
    text = decimal(value, 4)
    if text is None:
        return None
    turn = value / 180
    if rng.random() < 0.5 and turn.denominator <= 36 and turn:
        above, sign = abs(turn.numerator), "-" if turn < 0 else ""
        pi = "" if above == 1 else str(above)
        shapes = [f"{sign}\\frac{{{pi}\\pi}}{{{turn.denominator}}}", f"{sign}{pi}\\pi/{turn.denominator}"]
        if turn.denominator == 1:
            shapes = [f"{sign}{pi}\\pi"]
        return rng.choice(shapes) + rng.choice((" radians", " rad", "\\text{ radians}", "\\text{ rad}"))
    return text + rng.choice(("^\\circ", "^{\\circ}", "°", " degrees", "\\text{ degrees}", " deg", "\\degree"))


_COMPOUND = {
    "time": ((3600, "hour"), (60, "minute"), (1, "second")),
    "length": ((12, "foot"), (1, "inch")),
    "mass": ((16, "pound"), (1, "ounce")),
}


def _compound(base: Fraction, unit: Unit, rng: Random) -> str | None:
    """1 hour 30 minutes; None where one unit is enough."""
    if base.denominator != 1 or base <= 0 or unit.power != 1:
        return None
    rest, parts = int(base), []
    for size, name in _COMPOUND.get(unit.system[0], ()):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {Unit(name).names(Fraction(count))[0]}")
    if len(parts) < 2 or base >= 100 * 3600:
        return None
    return rng.choice((" ", " and ", ", ") if len(parts) == 2 else (" ",)).join(parts)


def repeating(value: Fraction, most: int = 6) -> str | None:
    r"""Return a repeating decimal such as 0.\overline{3}, with at most so many digits before and in the period; None
    where there are more, or no period."""
    whole, rest = divmod(abs(value).numerator, value.denominator)
    seen, digits = dict[int, int](), ""
    while rest and rest not in seen and len(digits) <= 2 * most:
        seen[rest] = len(digits)
        digit, rest = divmod(rest * 10, value.denominator)
        digits += str(digit)
    if not rest or rest not in seen or seen[rest] > most or len(digits) - seen[rest] > most:
        return None
    start = seen[rest]
    return f"{'-' if value < 0 else ''}{whole}.{digits[:start]}\\overline{{{digits[start:]}}}"


def grouped(text: str, mark: str) -> str:
    """Return an integer with its thousands separated."""
    whole, dot, rest = text.partition(".")
    return re.sub(r"(?<=\d)(?=(?:\d{3})+$)", lambda _: mark, whole) + dot + rest


def fraction(value: Fraction, rng: Random) -> str:
    r"""Return a fraction as \frac, \dfrac, \tfrac or a/b."""
    above, below, sign = abs(value.numerator), value.denominator, "-" if value < 0 else ""
    if below == 1:
        return f"{sign}{above}"
    shapes = [f"{sign}\\{name}{{{above}}}{{{below}}}" for name in ("frac", "dfrac", "tfrac")]
    shapes += [f"{sign}{above}/{below}", f"\\frac{{{sign}{above}}}{{{below}}}", f"{sign}{above} / {below}"]
    shapes += [f"\\left({shapes[0]}\\right)", f"{{{sign}{above} \\over {below}}}"]
    if above < 10 and below < 10:
        shapes.append(f"{sign}\\frac{above}{below}")
    return rng.choice(shapes)


def mixed(value: Fraction, rng: Random) -> str | None:
    r"""Return a mixed number such as 2\frac{1}{3}, None below 1."""
    whole, part = divmod(abs(value), 1)
    if not whole or not part:
        return None
    sign, (above, below) = "-" if value < 0 else "", (part.numerator, part.denominator)
    return sign + rng.choice(
        (f"{whole}\\frac{{{above}}}{{{below}}}", f"{whole} {above}/{below}", f"{whole} \\tfrac{{{above}}}{{{below}}}")
    )


def scientific(value: Fraction, rng: Random) -> str | None:
    """Return a number from a thousand upwards or below a tenth as a power of ten, None for others and for one that
    does not terminate."""
    if not value or Fraction(1, 10) <= abs(value) < 1000 or decimal(value) is None:
        return None
    power = 0
    while abs(value) / Fraction(10) ** power >= 10:
        power += 1
    while abs(value) / Fraction(10) ** power < 1:
        power -= 1
    head = decimal(value / Fraction(10) ** power, MOST_DIGITS)
    return head and rng.choice(
        (
            f"{head} \\times 10^{{{power}}}",
            f"{head} \\cdot 10^{{{power}}}",
            f"{head}e{power}",
            f"{head} x 10^{power}",
            f"{head}*10^{power}",
        )
    )


def written(value: Fraction, rng: Random) -> str:
    """Return a number as people write it: an integer, a short decimal, else a fraction."""
    text = decimal(value, 6)
    if text is None:
        return fraction(value, rng)
    return grouped(text, ",") if abs(value) >= 10_000 and rng.random() < 0.5 else text
