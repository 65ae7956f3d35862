"""Judges claims by intervals. A seed is one run: it could have come out differently, and so could an accuracy on other
held-out problems."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ulorl.common.intervals import Interval

REPRODUCED, NOT_REPRODUCED, NOT_RESOLVED = "reproduced", "not reproduced", "not resolved at this scale"


@dataclass(frozen=True)
class Claim:
    """A statement about a quantity, and what was measured. unit: "" (a ratio), "points" (shares are shown in points of
    percent) or "nats". over: what the interval of a figure of held-out problems counts."""

    text: str
    quantity: str
    found: Interval
    verdict: str
    unit: str = ""
    over: str = ""

    def __str__(self) -> str:
        return f"{self.text}: **{self.verdict}** ({self.measured})"

    @property
    def measured(self) -> str:
        """What was measured, in words and numbers."""
        factor, digits, sign = {"points": (100, 1, "+"), "nats": (1, 3, "+")}.get(self.unit, (1, 2, ""))
        value, low, high = (
            f"{factor * x:{sign}.{digits}f}" for x in (self.found.value, self.found.low, self.found.high)
        )
        interval = "" if math.isinf(self.found.high) else f", 95%{self.over and f' over {self.over}'}: {low} to {high}"
        return f"{self.quantity} {value}{self.unit and ' ' + self.unit}{interval}"


def within(text: str, quantity: str, found: Interval, low: float, high: float, unit: str = "") -> Claim:
    """Return the claim that the quantity is from `low` to `high`.

    It is reproduced when the whole interval is inside, not reproduced when all of it is outside on one side.
    """
    verdict = NOT_RESOLVED
    if low <= found.low and found.high <= high:
        verdict = REPRODUCED
    elif _outside(found, low, high):
        verdict = NOT_REPRODUCED
    return Claim(text, quantity, found, verdict, unit)


def held(text: str, quantity: str, found: Interval, baseline: Interval, low: float, high: float) -> Claim:
    """Return the claim that something holds the quantity from `low` to `high`. That says nothing unless the quantity of
    the baseline, which has no such control, lies outside: it is not resolved then."""
    claim = within(text, quantity, found, low, high)
    quantity = f"{quantity} (of all tokens {baseline.value:.2f})"
    if claim.verdict == REPRODUCED and not _outside(baseline, low, high):
        return replace(claim, verdict=NOT_RESOLVED, quantity=quantity)
    return replace(claim, quantity=quantity)


def above(text: str, quantity: str, found: Interval, bound: float = 0.0, unit: str = "") -> Claim:
    """Return the claim that the quantity is above `bound`."""
    return within(text, quantity, found, math.nextafter(bound, math.inf), math.inf, unit)


def below(text: str, quantity: str, found: Interval, bound: float = 0.0, unit: str = "") -> Claim:
    """Return the claim that the quantity is below `bound`."""
    return within(text, quantity, found, -math.inf, math.nextafter(bound, -math.inf), unit)


def compared(text: str, quantity: str, difference: Interval, unit: str) -> Claim:
    """Return a comparison that no paper made: the verdict is "higher", "lower" or not resolved."""
    verdict = "higher" if difference.low > 0 else "lower" if difference.high < 0 else NOT_RESOLVED
    return Claim(text, quantity, difference, verdict, unit)


def _outside(found: Interval, low: float, high: float) -> bool:
    return found.high < low or found.low > high
