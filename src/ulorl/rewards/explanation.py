"""Explains verdicts in words, where that costs more time than training should pay. It imports no torch."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from ulorl.answers import quantities
from ulorl.config.reward_config import AnswerConfig

ANY_DISTANCE = 1e300  # a tolerance that refuses no number
DIGITS = 6


def thinking(settings: AnswerConfig, text: str) -> str:
    """Return how an output's thinking explains that it has no answer; "" when it does not."""
    opening, closing = f"<{settings.think_tag}>", f"</{settings.think_tag}>"
    if settings.thinking == "off":
        return ""
    if opening in text.rpartition(closing)[2]:
        return "; the output ends within its thinking"
    if closing in text:
        return "; only what follows the thinking counts"
    return f"; there is no {closing} (reward.answer.thinking=required)" if settings.thinking == "required" else ""


def reading(reference: str, answer: str, strict: bool) -> str:
    """Return how `equality.numeric_score` reads both sides. It runs in the sandbox.

    strict: whether the answer must name the unit of the reference.
    """
    expected, found = quantities.read(reference), quantities.read(answer)
    if expected is None:
        return "the reference is no number with unit, so both are compared as text"
    if found is None:
        return f"the reference is {shown(expected)}, the answer is read as no number with unit"
    both = f"the reference is {shown(expected)}, the answer {shown(found)}"
    if strict and expected.unit and not found.unit:
        return f"{both}, which lacks the unit (reward.units=strict)"
    ones = [replace(side, value=Fraction(1)) for side in (expected, found)]
    if expected.unit and found.unit and not quantities.equal(ones[0], ones[1], absolute=ANY_DISTANCE):
        return f"{both}: units of other dimensions"
    return both


def shown(read: quantities.Quantity) -> str:
    """Return a quantity in words: `3/4 mile`, `1.5e+30 meter second^-2`, `5 (no unit)`."""
    value = read.value
    small = max(abs(value.numerator), value.denominator) < 10**DIGITS
    try:
        number = str(value) if small else f"{float(value):.{DIGITS}g}"
    except OverflowError:
        number = "a number beyond 1e308"
    if not read.unit:
        return f"{number} (no unit)"
    powers = [name if power == 1 else f"{name}^{power}" for name, power in read.unit]
    return f"{number} {' '.join(powers)}"
