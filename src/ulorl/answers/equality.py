"""When a predicted answer equals the reference: what the judge's process computes, under its limits. No torch."""

from __future__ import annotations

from typing import Any

from ulorl.answers import math_verify_guard, quantities
from ulorl.answers.formulas import listed
from ulorl.answers.normalisation import exact_form


def math_score(reference: str, answer: str, prose: bool = False, whole: bool = False, question: str = "") -> float:
    """Whether they are mathematically equal.

    prose: words may surround the answer's expression; whole: math-verify is to find it in a whole output; question:
    what the problem asks, where it is known.
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
    """predicted: what math-verify has read already, of which `answer` is the text."""
    from math_verify import verify

    spelled = math_verify_guard.respelled(reference, answer)
    decision = math_verify_guard.decided(*spelled, _equal, question)
    if decision is not None:
        return decision
    if not predicted or spelled[1] != answer:
        predicted = _parsed(rf"\boxed{{{spelled[1]}}}")
    gold = _parsed(rf"\boxed{{{spelled[0]}}}")
    same = verify(gold, predicted, timeout_seconds=None, allow_set_relation_comp=True)
    return bool(same) and (not gold or math_verify_guard.near(gold[0], predicted[0]))


def _parsed(text: str) -> list[Any]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    configs = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    found: list[Any] = parse(text, configs, parsing_timeout=None)
    return found


def numeric_score(
    reference: str, answer: str, relative: float = 0.0, absolute: float = 0.0, strict: bool = False
) -> float:
    """Whether they are the same number with unit, as `quantity.equal`. A reference that is none is compared as text."""
    expected = quantities.read(reference)
    if expected is None:
        return float(exact_form(reference) == exact_form(answer))
    found = quantities.read(answer)
    return float(found is not None and quantities.equal(expected, found, relative, absolute, strict))


def rules_score(reference: str, answer: str) -> float:
    """1.0: they are equal; -1.0: they are surely not (`quantity.different`); 0.0: neither is shown. Where both name a
    unit, quantities are compared; else as `math_score`, which does not look at units: to it 5 m are 5 cm."""
    expected, found = quantities.read(reference), quantities.read(answer)
    if expected and found and quantities.different(expected, found):
        return -1.0
    if expected and found and expected.unit and found.unit:
        return float(quantities.equal(expected, found))
    return math_score(reference, answer)
