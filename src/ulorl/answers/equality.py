"""Decides whether an answer equals the reference. The judge's process runs this, under its limits. No torch."""

from __future__ import annotations

from typing import Any

from ulorl.answers import math_verify_guard, quantities
from ulorl.answers.formulas import listed
from ulorl.answers.normalisation import exact_form


def math_score(reference: str, answer: str, prose: bool = False, whole: bool = False, question: str = "") -> float:
    """Return 1.0 if the answer is mathematically equal to the reference, else 0.0.

    prose: words may surround the answer's expression. whole: `answer` is a whole output in which math-verify searches
    for the answer. question: the problem's text where it is known.
    """
    if whole:
        found = _parsed(answer)
        said = next((part for part in found if isinstance(part, str)), "")
        return float(_equal(reference, said, question, found) if found else False)
    if prose and (together := listed(answer)):
        return float(_equal(reference, together, question))
    predicted = _parsed(f"The final answer is {answer}") if prose else []
    said = next((part for part in predicted if isinstance(part, str)), "")
    return float(_equal(reference, said, question, predicted) if said else _equal(reference, answer, question))


def _equal(reference: str, answer: str, question: str = "", predicted: list[Any] | None = None) -> bool:
    """Return whether math-verify finds both equal. predicted: what it has parsed already from the text `answer`."""
    from math_verify import verify

    spelled = math_verify_guard.respell(reference, answer)
    decision = math_verify_guard.decide(*spelled, _equal, question)
    if decision is not None:
        return decision
    if not predicted or spelled[1] != answer:
        predicted = _parsed(rf"\boxed{{{spelled[1]}}}")
    gold = _parsed(rf"\boxed{{{spelled[0]}}}")
    same = verify(gold, predicted, timeout_seconds=None, allow_set_relation_comp=True)
    return bool(same) and (not gold or math_verify_guard.is_near(gold[0], predicted[0]))


def _parsed(text: str) -> list[Any]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    configs = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    found: list[Any] = parse(text, configs, parsing_timeout=None)
    return found


def numeric_score(
    reference: str, answer: str, relative: float = 0.0, absolute: float = 0.0, strict: bool = False
) -> float:
    """Return 1.0 if both are the same number with unit, as `quantities.equal` decides, else 0.0.

    A reference that is no quantity is compared as text.
    """
    expected = quantities.read(reference)
    if expected is None:
        return float(exact_form(reference) == exact_form(answer))
    found = quantities.read(answer)
    return float(found is not None and quantities.equal(expected, found, relative, absolute, strict))


def rules_score(reference: str, answer: str) -> float:
    """Return 1.0 if both are equal, -1.0 if they certainly differ (`quantities.different`), 0.0 if neither is shown.

    Where both name a unit, quantities are compared. All else is compared by `math_score`, which ignores units: for it,
    5 m equals 5 cm.
    """
    expected, found = quantities.read(reference), quantities.read(answer)
    if expected and found and quantities.different(expected, found):
        return -1.0
    if expected and found and expected.unit and found.unit:
        return float(quantities.equal(expected, found))
    return math_score(reference, answer)
