"""When a predicted answer equals the reference: what the judge's process computes, under its limits. No torch."""

from __future__ import annotations

import re
from typing import Any

from ulorl.rewards import quantity
from ulorl.rewards.text import normalised

_RANGE = re.compile(r"\d+ ?[-–] ?\d+")


def math_score(reference: str, answer: str, prose: bool = False) -> float:
    """Whether they are mathematically equal. prose: words may surround the answer's expression."""
    from math_verify import verify

    predicted = _parsed(f"The final answer is {answer}") if prose else []
    return float(verify(_parsed(_boxed(reference)), predicted or _parsed(_boxed(answer)), timeout_seconds=None))


def _parsed(text: str) -> list[Any]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    configs = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    found: list[Any] = parse(text, configs, parsing_timeout=None)
    return found


def _boxed(answer: str) -> str:
    return rf"\boxed{{{_plain_integer(answer)}}}"


def _plain_integer(answer: str) -> str:
    """AIME writes 033: the integer 33."""
    return str(int(answer)) if re.fullmatch(r"\s*0\d{1,30}\s*", answer) else answer


def numeric_score(
    reference: str, answer: str, relative: float = 0.0, absolute: float = 0.0, strict: bool = False
) -> float:
    """Whether they are the same number with unit, as `quantity.equal`. A reference that is none is compared as text."""
    expected = quantity.read(reference)
    if expected is None:
        return float(normalised(reference) == normalised(answer))
    found = quantity.read(answer)
    return float(found is not None and quantity.equal(expected, found, relative, absolute, strict))


def rules_score(reference: str, answer: str) -> float:
    """1.0: they are equal; -1.0: they are surely not (`quantity.different`); 0.0: neither is shown. Where both name a
    unit, quantities are compared; else as `math_score`, which does not look at units: to it 5 m are 5 cm."""
    expected, found = quantity.read(reference), quantity.read(answer)
    if expected and found and quantity.different(expected, found):
        return -1.0
    if expected and found and expected.unit and found.unit:
        return float(quantity.equal(expected, found))
    if _RANGE.fullmatch(reference.strip()):  # to math-verify 3-4 is -1
        return 0.0
    return math_score(reference, answer)
