"""Expressions: reads them with sympy, rewrites them with proof of equality, and shows numerically that two differ."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from functools import lru_cache
from random import Random
from typing import Any

# \log is left out: which base it has, the question says
_COMMAND = r"\\(?:frac|dfrac|tfrac|sqrt|pi|cdot|times|ln|sin|cos|tan|left|right|alpha|beta|theta)(?![a-z])"
_READABLE = re.compile(rf"(?:{_COMMAND}|\d+(?:\.\d+)?|[a-zA-Z](?![a-zA-Z]{{3}})|[-+*/^{{}}()\[\]\s]|\\[, !;])+")
_APPLIED = re.compile(r"(?<![A-Za-z\\])[fghA-Z]\s*(?:\\left)?\(")  # f(x) is no product
_TOO_LARGE = re.compile(r"\^\s*\{?\s*-?\d{3,}|\^\s*\{[^{}]*\^")
MOST_CHARACTERS = 80
_E_NOTATION = re.compile(r"\d[eE][-+]?\d")  # a number, not 4e - 5
_POINTS = (7, 11, 13, 17, 19, 23, 29, 31)


@lru_cache(maxsize=65536)
def parse(text: str) -> Any:
    """Return the sympy expression of a text, None for what is no expression or cannot be rewritten safely."""
    if len(text) > MOST_CHARACTERS or not _READABLE.fullmatch(text) or _TOO_LARGE.search(text):
        return None
    if _APPLIED.search(text) or _E_NOTATION.search(text):
        return None
    import sympy
    from math_verify import LatexExtractionConfig
    from math_verify import parse as read
    from sympy.core.traversal import bottom_up

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that without a time limit it has none
    try:
        found = read(rf"\boxed{{{text}}}", [LatexExtractionConfig(boxed_match_priority=0)], parsing_timeout=None)
    except Exception:  # sympy and its reader of LaTeX raise what they like; then it is no expression
        return None
    if not found or not isinstance(found[0], sympy.Expr) or found[0].has(sympy.zoo, sympy.nan, sympy.oo):
        return None
    imaginary = {symbol: sympy.I for symbol in found[0].free_symbols if symbol.name == "i"}
    euler = {symbol: sympy.E for symbol in found[0].free_symbols if symbol.name == "e"}
    expression = bottom_up(found[0].subs(imaginary | euler), lambda part: part.func(*part.args) if part.args else part)
    strange = {symbol.name for symbol in expression.free_symbols if symbol.name not in text}  # C read as c
    return None if strange or expression.has(sympy.Float) else expression


def equal(left: Any, right: Any) -> bool:
    """Return whether two expressions are proven equal: their difference is zero by expansion over a common
    denominator."""
    import sympy

    difference = sympy.expand(left - right)
    if difference != 0:
        difference = sympy.expand(sympy.numer(sympy.together(sympy.radsimp(difference))))
    if difference != 0:
        difference = sympy.expand(sympy.expand_log(difference, force=not difference.free_symbols))
    return bool(difference == 0)


def different(left: Any, right: Any) -> bool:
    """Return whether two expressions are proven different: at a point they differ by far more than the error of 30
    digits."""
    import sympy

    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    point = {symbol: sympy.Rational(_POINTS[i % 8], 5) + i for i, symbol in enumerate(symbols)}
    try:
        values = [complex(side.subs(point).evalf(30)) for side in (left, right)]
    except (TypeError, ValueError, OverflowError):
        return False
    return abs(values[0] - values[1]) > 1e-9 * (1e-6 + abs(values[0]))


def rewritten(expression: Any, rng: Random) -> str | None:
    """Return the LaTeX of an equal expression in another shape, None where no way of rewriting changes it."""
    import sympy

    symbols = sorted(expression.free_symbols, key=str)
    ways: list[Callable[[Any], Any]] = [
        sympy.expand,
        sympy.factor,
        sympy.together,
        sympy.factor_terms,
        sympy.cancel,
        sympy.radsimp,
    ]
    if len(symbols) == 1:
        ways.append(lambda e: sympy.apart(e, symbols[0]))
    texts = []
    for way in ways:
        try:
            new = way(expression)
        except Exception:  # each refuses some expressions, in its own way
            continue
        if new != expression and equal(new, expression):
            texts.append(_latex(new, "lex"))
    texts += [shape for shape in _constants(expression) if shape]
    if isinstance(expression, sympy.Add):
        texts.append(_reordered(expression, rng))
    return rng.choice(texts) if texts else None


def _latex(expression: Any, order: str) -> str:
    import sympy

    return str(sympy.latex(expression, order=order, ln_notation=True, fold_short_frac=False))


def _reordered(expression: Any, rng: Random) -> str:
    """Return the terms of a sum in another order."""
    terms = [_latex(term, "lex") for term in expression.as_ordered_terms()]
    terms = terms[::-1] if len(terms) == 2 else rng.sample(terms, len(terms))
    return re.sub(r"\+ -\s*", "- ", " + ".join(terms))


def _constants(expression: Any) -> list[str]:
    """A root with everything under it, or below the line; a logarithm without factor."""
    import sympy

    factor, rest = expression.as_coeff_Mul()
    if not factor.is_Rational or factor in (0, 1):
        return []
    sign, size = "-" if factor < 0 else "", abs(factor)
    if rest.is_Pow and rest.exp == sympy.Rational(1, 2) and rest.base.is_Integer and rest.base > 0:
        inside = size**2 * rest.base
        below = size.q * rest.base
        above, below_only = sympy.Rational(size.p * rest.base, size.q).p, sympy.Rational(size.p * rest.base, size.q).q
        root = rf"\sqrt{{{rest.base}}}"
        found = [rf"{sign}\frac{{{above}}}{{{'' if below_only == 1 else below_only}{root}}}"] if below else []
        found.append(
            rf"{sign}\sqrt{{{inside}}}" if inside.is_Integer else rf"{sign}\sqrt{{\frac{{{inside.p}}}{{{inside.q}}}}}"
        )
        return found
    if isinstance(rest, sympy.log) and rest.args[0].is_Integer and factor.is_Integer and 1 < size <= 6:
        return [rf"{sign}\ln {rest.args[0] ** size}"]
    return []


def plain(expression: Any, rng: Random) -> str:
    """Return an expression as people type it: 3*sqrt(2), x^2 + 1."""
    text = str(expression).replace("**", "^").replace("log", "ln")
    if not {"E", "I"} & {symbol.name for symbol in expression.free_symbols}:
        text = text.replace("E", "e").replace("I", "i")
    if rng.random() < 0.5:
        text = re.sub(r"(?<=\d)\*(?=[a-z])", "", text)
    if rng.random() < 0.3:
        text = re.sub(r"sqrt\((\w+)\)", r"√\1", text)
    if rng.random() < 0.3:
        text = text.replace("pi", "π")
    return text.replace(" ", "") if rng.random() < 0.3 else text
