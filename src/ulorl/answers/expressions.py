"""Computes expressions without variables, such as 2^{31}-1 or 12√13. Rational values are exact."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any, NamedTuple

DIGITS = 50  # of what is irrational
MAX_BITS = 40_000  # of a number's numerator and denominator: 12,000 digits
_DENOMINATOR, _WHOLE, _DIGITS_OF_FRACTION = 10**6, 10**20, 10**45  # for what is taken for a fraction: below these
_MAX_ARGUMENT = 4000  # of factorials and binomials
_FACTORIALS = {"factorial", "factorial2", "subfactorial", "binomial", "gamma", "RisingFactorial", "FallingFactorial"}
_NO_NUMBER = re.compile(  # lists, relations, choices, feet and inches: math-verify may read one number from them
    r"[^\w\\{}()\[\]|+\-*/^.,:!% ]|:.*:|\d\s*_|"
    r"\\(?:to|pm|mp|or|and|approx|neq?|leq?|geq?|[lg]t|in|cup|infty|[lc]?dots|(?:long)?rightarrow)(?![A-Za-z])"
)
_E_NOTATION = re.compile(r"(?<![A-Za-z\d.])(\d+\.?\d*|\.\d+)[eE]([-+]?\d+)(?![\d.])")
_EXPONENT = re.compile(r"\^ ?([-+]?\d+)")


class Value(NamedTuple):
    """A real number."""

    value: Fraction
    exact: bool  # False: to `DIGITS` digits


class _TooLargeError(Exception):
    """A number of more than `MAX_BITS`."""


def evaluate_latex(text: str) -> Value | None:
    """Return the value of LaTeX; None for what is no real number, and for a number of more than `MAX_BITS`."""
    from math_verify import LatexExtractionConfig, parse

    if _NO_NUMBER.search(text):
        return None
    text = _E_NOTATION.sub(r"(\1 \\cdot 10^{\2})", text)
    text = _EXPONENT.sub(r"^{\1}", text)
    try:
        found = parse(rf"\boxed{{{text}}}", [LatexExtractionConfig()], parsing_timeout=None)
        if not found or getattr(found[0], "free_symbols", True):
            return None
        rational = _rational(found[0])
        return Value(rational, True) if rational is not None else _computed(found[0])
    except Exception:  # sympy and its reader of LaTeX raise exceptions of any type; then it is no number
        return None


def _rational(expression: Any) -> Fraction | None:
    """Return the exact value, where the operations keep to rational numbers. Raises _TooLargeError."""
    if expression.is_Rational:
        return _bounded(Fraction(int(expression.p), int(expression.q)))
    if expression.is_Float:  # as it was written
        return _bounded(Fraction(str(expression)))
    arguments = [_rational(argument) for argument in expression.args]
    known = [argument for argument in arguments if argument is not None]
    if not known or len(known) < len(arguments):
        return None
    if expression.is_Add:
        return _bounded(sum(known, Fraction(0)))
    if expression.is_Mul:
        return _bounded(math.prod(known, start=Fraction(1)))
    if expression.is_Pow:
        return _power(*known)
    return _applied(expression.func, known)


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise _TooLargeError
    return value


def _power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator > 1:
        root = _root(base, exponent.denominator)
        return None if root is None else _power(root, Fraction(exponent.numerator))
    if base in (0, 1, -1):
        return base ** (int(exponent) if base == 0 else int(exponent) % 2)
    if abs(exponent) * (max(abs(base.numerator), base.denominator).bit_length() - 1) > MAX_BITS:
        raise _TooLargeError
    return _bounded(base ** int(exponent))


def _root(base: Fraction, degree: int) -> Fraction | None:
    """Return the root; None where it is irrational, or not real."""
    from sympy import integer_nthroot

    if base < 0 or degree > MAX_BITS:
        return None
    above, below = integer_nthroot(base.numerator, degree), integer_nthroot(base.denominator, degree)
    return Fraction(int(above[0]), int(below[0])) if above[1] and below[1] else None


def _applied(function: Any, arguments: list[Fraction]) -> Fraction | None:
    """Return the value of one of sympy's functions: floor, Mod, factorial, log."""
    from sympy import Rational

    if function.__name__ in _FACTORIALS and max(map(abs, arguments)) > _MAX_ARGUMENT:
        raise _TooLargeError
    value = function(*(Rational(argument.numerator, argument.denominator) for argument in arguments))
    value = value.doit() if not value.is_Rational else value
    return _bounded(Fraction(int(value.p), int(value.q))) if value.is_Rational else None


def _computed(expression: Any) -> Value | None:
    """A value that is a fraction in nearly all of its digits, such as sin(π/6), is this fraction."""
    from sympy import Float, Rational

    exact = expression.xreplace({number: Rational(str(number)) for number in expression.atoms(Float)})
    found = exact.evalf(DIGITS)
    if not (found.is_Float or found.is_Rational) or not found.is_finite:
        return None
    if found.is_Float and found._prec == 1:  # no digit is certain: sympy takes it for zero
        return Value(Fraction(0), False)
    if found and not Float(2) ** -MAX_BITS < abs(found) < Float(2) ** MAX_BITS:
        return None
    found = Rational(found)
    value = Fraction(int(found.p), int(found.q))
    simple = value.limit_denominator(_DENOMINATOR)
    if abs(value) < _WHOLE and abs(value - simple) <= abs(value) / _DIGITS_OF_FRACTION:
        return Value(simple, True)
    return Value(value, False)
