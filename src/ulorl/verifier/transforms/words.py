"""Numbers in English words."""

from __future__ import annotations

from fractions import Fraction
from random import Random

_ONES = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_ORDINALS = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
    "twelve": "twelfth",
}  # fmt: skip
MOST = 1_000_000  # excluded
_MOST_PARTS = 20  # numerator and denominator of a fraction that people say


def cardinal(number: int, joined: str = " ") -> str:
    """0 <= number < MOST. joined: what stands between hundreds and the rest, " " or " and "."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS[tens - 2] + (f"-{_ONES[ones]}" if ones else "")
    if number < 1000:
        hundreds, rest = divmod(number, 100)
        return f"{_ONES[hundreds]} hundred" + (joined + cardinal(rest) if rest else "")
    thousands, rest = divmod(number, 1000)
    between = joined if rest < 100 else " "
    return f"{cardinal(thousands, joined)} thousand" + (between + cardinal(rest, joined) if rest else "")


def ordinal(number: int) -> str:
    """1 <= number < MOST."""
    head, mark, last = cardinal(number).rpartition("-")
    before, space, last = last.rpartition(" ")
    last = _ORDINALS.get(last) or (last[:-1] + "ieth" if last.endswith("y") else f"{last}th")
    return head + mark + before + space + last


def spoken(value: Fraction, rng: Random) -> str | None:
    """A whole number, a fraction with small parts ("two and three fourths") or a short decimal ("two point five")."""
    sign = rng.choice(("negative ", "minus ")) if value < 0 else ""
    whole, part = divmod(abs(value), 1)
    if whole >= MOST:
        return None
    joined = rng.choice((" ", " and "))
    if not part:
        return sign + cardinal(whole, joined)
    if part.denominator <= _MOST_PARTS:
        if whole and rng.random() < 0.5 and abs(value).numerator <= _MOST_PARTS:
            whole, part = 0, abs(value)
        ahead = f"{cardinal(whole, joined)} and " if whole else ""
        return sign + ahead + _parts(part, rng)
    for digits in (1, 2, 3):
        if not (abs(value) * 10**digits) % 1:
            behind = f"{int(part * 10**digits):0{digits}}"
            return f"{sign}{cardinal(whole, joined)} point {' '.join(_ONES[int(digit)] for digit in behind)}"
    return None


def _parts(part: Fraction, rng: Random) -> str:
    above, below = part.numerator, part.denominator
    name = {2: "half", 4: rng.choice(("fourth", "quarter"))}.get(below) or ordinal(below)
    if above > 1:
        name = "halves" if below == 2 else f"{name}s"
    return cardinal(above) + rng.choice((" ", "-" if above < 20 else " ")) + name
