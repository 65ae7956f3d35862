"""Answers of several parts: sets and lists, ordered tuples, intervals and their unions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random
from typing import Any

from ulorl.verifier.transforms import algebra, question_form

_POINT = re.compile(
    r"ordered|coordinates?|\bpoints?\b|vertex|center|centre|triple|tuple|\bfoc|vector|intersect|solution"
    r"|\([a-z], ?[a-z]"
)
_INTERVAL = re.compile(r"interval|domain|range|all (?:real|values|possible values)|inequalit|values of")
_OR = re.compile(r"\bor\b")
_CUP = re.compile(r"\\cup(?![a-z])|∪")
_SPAN = re.compile(r"([(\[])([^()\[\],]+),([^()\[\],]+)([)\]])")
_ENDS = {"(": False, "[": True, ")": False, "]": True}


@dataclass(frozen=True)
class Parts:
    """A set, whose order does not matter, or a tuple: the texts of its elements, and sympy's reading of them."""

    texts: tuple[str, ...]
    values: tuple[Any, ...]
    ordered: bool


@dataclass(frozen=True)
class Span:
    """An interval: the texts of its ends, and whether they belong to it."""

    low: str
    high: str
    low_in: bool
    high_in: bool


@dataclass(frozen=True)
class Spans:
    """A union of intervals. set: that of sympy."""

    spans: tuple[Span, ...]
    set: Any


def read_spans(text: str, question: str) -> Spans | None:
    r"""Read a union of intervals, such as [1, 2), only where the brackets or the question say that it is one; None
    for anything else, such as (-\infty, 3] \cup \{5\}."""
    import sympy

    text = re.sub(r"\\(?:left|right)(?![a-z])|\\[,!; ]", "", text).strip().strip("$")
    found = [_SPAN.fullmatch(part.strip()) for part in _CUP.split(text)]
    if not all(found) or len(found) > 4:
        return None
    spans, sets = [], []
    for match in found:
        assert match is not None
        low, high = match[2].strip(), match[3].strip()
        spans.append(Span(low, high, _ENDS[match[1]], _ENDS[match[4]]))
        ends = [_end(low), _end(high)]
        if any(end is None or end.free_symbols or not end.is_extended_real for end in ends) or not ends[0] < ends[1]:
            return None
        if any(
            end.is_infinite and inside for end, inside in zip(ends, (spans[-1].low_in, spans[-1].high_in), strict=True)
        ):
            return None
        sets.append(sympy.Interval(*ends, not spans[-1].low_in, not spans[-1].high_in))
    plain = len(found) == 1 and not any(mark in text for mark in ("[", "]", "infty"))
    if plain and (not _INTERVAL.search(question.lower()) or _POINT.search(question.lower())):
        return None
    if len(found) == 1 and text[0] == "[" and text[-1] == "]" and not _INTERVAL.search(question.lower()):
        return None
    union = sympy.Union(*sets)
    return Spans(tuple(spans), union) if sum(1 for _ in _pieces(union)) == len(sets) else None


def _pieces(union: Any) -> tuple[Any, ...]:
    import sympy

    return tuple(union.args) if isinstance(union, sympy.Union) else (union,)


def _end(text: str) -> Any:
    import sympy

    bare = text.replace(" ", "").replace("{", "").replace("}", "")
    if bare in ("\\infty", "+\\infty", "-\\infty", "∞", "-∞"):
        return -sympy.oo if bare.startswith("-") else sympy.oo
    return algebra.parse(text)


def read_parts(text: str, question: str) -> Parts | None:
    r"""Read \{1, 2\} as a set; 1, 2, 3 or 1 \text{ and } 2 as sets where the question certainly asks for values
    without order; (1, 2) as a tuple where it asks for points and the like. None where this is uncertain."""
    text = re.sub(r"\\(?:left|right)(?![a-z])|\\[!;]", "", text).strip().strip("$").strip()
    lowered = question.lower()
    ordered = text.startswith("(") and text.endswith(")") and text.count("(") == 1
    if ordered:
        if not _POINT.search(lowered) or (
            _INTERVAL.search(lowered) and text.count(",") == 1 and not re.search(r"ordered|point|coord|vert", lowered)
        ):
            return None
        text = text[1:-1]
    elif text.startswith(r"\{") and text.endswith(r"\}"):
        if question_form.ordered_set(question):
            return None
        text = text[2:-2]
    elif not question_form.unordered(question, either=bool(_OR.search(text))):
        return None
    text = re.sub(r"\\text\s*\{\s*,?\s*(?:and|or)\s*\}|\\mbox\s*\{\s*(?:and|or)\s*\}", ",", text)
    texts = tuple(part.strip() for part in text.split(","))
    if not 2 <= len(texts) <= 8 or re.search(r"\d,\d{3}(?!\d)", text) or re.search(r"\d,\\!", text):
        return None
    values = tuple(algebra.parse(part) if part else None for part in texts)
    if any(value is None for value in values):
        return None
    if not ordered and any(algebra.equal(a, b) for i, a in enumerate(values) for b in values[:i]):
        return None
    return Parts(texts, values, ordered)


def parts_differ(left: Parts, right: Parts) -> bool:
    """Return whether two sets or tuples are proven to be different."""
    if left.ordered != right.ordered:
        return False
    if len(left.values) != len(right.values):
        return True
    if left.ordered:
        return any(algebra.different(a, b) for a, b in zip(left.values, right.values, strict=True))
    sides = ((left, right), (right, left))
    return any(all(algebra.different(a, b) for b in two.values) for one, two in sides for a in one.values)


def spell_parts(parts: Parts, rng: Random, variable: str) -> str:
    """Return a set or tuple in a kind of spelling, None where it has none."""
    texts = list(parts.texts)
    if rng.random() < 0.35:
        texts = [algebra.plain(value, rng) for value in parts.values]
    if parts.ordered:
        inner = rng.choice((",", ", ", " , ", ",\\ ", ",\\,")).join(texts)
        return rng.choice((f"({inner})", f"\\left({inner}\\right)", f"\\left( {inner} \\right)", f"( {inner} )"))
    texts = texts[::-1] if len(texts) == 2 and rng.random() < 0.7 else rng.sample(texts, len(texts))
    *head, last = texts
    shapes = [
        ", ".join(texts),
        f"\\{{{', '.join(texts)}\\}}",
        f"\\left\\{{{', '.join(texts)}\\right\\}}",
        "{" + ", ".join(texts) + "}",
    ]
    shapes += [
        f"{', '.join(head)} and {last}",
        f"{', '.join(head)}\\text{{ and }}{last}",
    ]
    if variable:
        shapes.append(" or ".join(f"{variable} = {text}" for text in texts))
    return rng.choice(shapes)


def change_parts(parts: Parts, how: str, rng: Random) -> tuple[str, ...] | None:
    """Return the texts of other elements, of which at least one differs."""
    texts = list(parts.texts)
    if how == "swapped":
        a, b = rng.sample(range(len(texts)), 2)
        texts[a], texts[b] = texts[b], texts[a]
    elif how == "missing":
        if len(texts) < 2 or parts.ordered:
            return None
        texts.pop(rng.randrange(len(texts)))
    elif how == "extra":
        whole = [value for value in parts.values if value.is_Integer]
        if parts.ordered or not whole:
            return None
        texts.insert(rng.randrange(len(texts) + 1), str(rng.choice(whole) + rng.choice((1, -1, 2))))
    return tuple(texts)


def joined(texts: tuple[str, ...], ordered: bool, like: str) -> str:
    """Return elements joined as the reference writes them."""
    if ordered:
        return f"({', '.join(texts)})" if ", " in like else f"({','.join(texts)})"
    inner = (", " if ", " in like else ",").join(texts)
    return f"\\{{{inner}\\}}" if like.strip("$ ").startswith("\\{") or "\\left\\{" in like else inner


def change_spans(spans: Spans, how: str, rng: Random) -> str | None:
    """Return the LaTeX of another union: one end opened or closed, or one interval left out."""
    new = list(spans.spans)
    at = rng.randrange(len(new))
    span = new[at]
    if how == "open_closed":
        low = rng.random() < 0.5
        if "infty" in (span.low if low else span.high) or "∞" in (span.low if low else span.high):
            low = not low
        if "infty" in (span.low if low else span.high):
            return None
        new[at] = Span(span.low, span.high, span.low_in != low, span.high_in == low)
    elif how == "missing":
        if len(new) < 2:
            return None
        new.pop(at)
    return r" \cup ".join(_bracketed(span) for span in new)


def _bracketed(span: Span, comma: str = ",") -> str:
    return f"{'[' if span.low_in else '('}{span.low}{comma}{span.high}{']' if span.high_in else ')'}"


def spell_spans(spans: Spans, rng: Random, variable: str) -> str:
    """Return a union of intervals in a kind of spelling, None where it has none."""
    chosen = rng.sample(spans.spans, len(spans.spans))
    if len(chosen) == 2 and rng.random() < 0.6:
        chosen = list(spans.spans[::-1])
    if rng.random() < 0.5:
        texts = [_bracketed(span, rng.choice((",", ", "))) for span in chosen]
        texts = [
            text.replace("\\infty", rng.choice(("\\infty", "∞", "+\\infty")) if "-\\infty" not in text else "\\infty")
            for text in texts
        ]
        if rng.random() < 0.5:
            texts = [re.sub(r"^([(\[])", r"\\left\1", re.sub(r"([)\]])$", r"\\right\1", text)) for text in texts]
        return rng.choice((r" \cup ", "\\cup ", " ∪ ", " U ")).join(texts)
    ascii_signs = rng.random() < 0.4
    whole = [_inequality(span, variable or "x", ascii_signs, rng) for span in chosen]
    if any(text is None for text in whole):
        return r" \cup ".join(_bracketed(span, ", ") for span in chosen)
    text = (rng.choice((" or ", "\\text{ or }"))).join(text for text in whole if text)
    if not variable or (len(whole) == 1 and rng.random() < 0.25):  # in braces any letter will do
        variable = variable or "x"
        return rng.choice((f"\\{{{variable} : {text}\\}}", f"\\{{{variable} \\mid {text}\\}}"))
    return text


def _inequality(span: Span, variable: str, plain: bool, rng: Random) -> str | None:
    less, at_most = "<", ("<=" if plain else rng.choice(("\\le", "\\leq")))
    low, high = (None if "infty" in end or "∞" in end else end for end in (span.low, span.high))
    if low is None and high is None:
        return None
    if low is None or high is None:
        if high is not None:
            return f"{variable} {at_most if span.high_in else less} {high}"
        at_least = ">=" if plain else rng.choice(("\\ge", "\\geq"))
        return f"{variable} {at_least if span.low_in else '>'} {low}"
    return f"{low} {at_most if span.low_in else less} {variable} {at_most if span.high_in else less} {high}"
