"""Judges the claims of the paper by intervals over seeds. A seed is one run: the unit that could have come out
differently."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ulorl.common.intervals import Interval, student

Verdict = Literal["reproduced", "not reproduced", "not resolved at this scale"]


def over_seeds(values: Sequence[float] | NDArray[np.float64]) -> Interval:
    """Return the mean over seeds with its 95% interval: mean ± t(n - 1) s / sqrt(n). One seed has an infinite one."""
    array = np.asarray(values, dtype=np.float64)
    mean, n = float(array.mean()), len(array)
    half = student(n - 1) * float(array.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    return Interval(mean, mean - half, mean + half)


@dataclass(frozen=True)
class Claim:
    """A statement of the paper about a quantity, and what was measured. unit: "", "%" or "nats"."""

    text: str
    quantity: str
    found: Interval
    verdict: Verdict
    unit: str = ""

    def __str__(self) -> str:
        measured = f"{self.quantity} {as_text(self.found, self.unit)}"
        return f"{self.text}: **{self.verdict}** ({measured})"


def as_text(found: Interval, unit: str = "") -> str:
    """Return a mean with its interval. Shares are shown in percent for unit "%"."""
    factor, digits = (100, 1) if unit == "%" else (1, 3)
    value, low, high = (f"{factor * x:.{digits}f}" for x in (found.value, found.low, found.high))
    suffix = {"": "", "%": "%"}.get(unit, f" {unit}")
    return f"{value}{suffix}" + ("" if math.isinf(found.high) else f", 95%: {low} to {high}")


def within(text: str, quantity: str, found: Interval, low: float, high: float, unit: str = "") -> Claim:
    """Return the claim that the quantity is from `low` to `high`.

    It is reproduced when the whole interval is inside, not reproduced when all of it is outside on one side.
    """
    verdict: Verdict = "not resolved at this scale"
    if low <= found.low and found.high <= high:
        verdict = "reproduced"
    elif found.high < low or found.low > high:
        verdict = "not reproduced"
    return Claim(text, quantity, found, verdict, unit)


def above(text: str, quantity: str, found: Interval, bound: float = 0.0, unit: str = "") -> Claim:
    """Return the claim that the quantity is above `bound`."""
    return within(text, quantity, found, math.nextafter(bound, math.inf), math.inf, unit)


def below(text: str, quantity: str, found: Interval, bound: float = 0.0, unit: str = "") -> Claim:
    """Return the claim that the quantity is below `bound`."""
    return within(text, quantity, found, -math.inf, math.nextafter(bound, -math.inf), unit)
