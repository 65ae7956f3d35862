"""Writes numbers in English words."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from random import Random

import inflect

MOST = 1_000_000  # excluded
_MOST_PARTS = 20  # numerator and denominator of a fraction that people say
_ENGLISH = inflect.engine()


@lru_cache(maxsize=4096)
def cardinal(number: int, joined: str = " ") -> str:
    """Return a cardinal number in words, for 0 <= number < MOST. joined: the text between hundreds and the rest, " "
    or " and "."""
    return str(_ENGLISH.number_to_words(number, andword=joined.strip(), comma=""))


def ordinal(number: int) -> str:
    """Return an ordinal number in words, for 1 <= number < MOST."""
    return str(_ENGLISH.ordinal(cardinal(number)))


def spoken(value: Fraction, rng: Random) -> str | None:
    """Return a whole number, a fraction with small parts ("two and three fourths") or a short decimal ("two point
    five") in words, None for other numbers."""
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
            return f"{sign}{cardinal(whole, joined)} point {' '.join(cardinal(int(digit)) for digit in behind)}"
    return None


def _parts(part: Fraction, rng: Random) -> str:
    above, below = part.numerator, part.denominator
    name = {2: "half", 4: rng.choice(("fourth", "quarter"))}.get(below) or ordinal(below)
    if above > 1:
        name = "halves" if below == 2 else f"{name}s"
    return cardinal(above) + rng.choice((" ", "-" if above < 20 else " ")) + name
