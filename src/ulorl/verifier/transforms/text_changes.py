"""Changes any answer as text: other LaTeX for the same value, words around it, another numeral in it."""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

_COMMAND_OR_TEXT = re.compile(r"\\(?:text|mbox|mathrm|textbf)\s*\{[^{}]*\}|\\[a-zA-Z]+")
_NUMERAL = re.compile(r"\d+")
_TERM_SIGN = re.compile(r"(?<=[\w})\s])\s*[+-](?=\s*[\w\\({])")
CHANGES = ("sign", "off_by_one", "digits", "dropped_digit")
_FRAC = re.compile(r"\\[dt]?frac(?![a-z])")
_FACTOR = re.compile(r"(?<=\d)\s*(?=\\(?:sqrt|pi)(?![a-z]))")
_BARE_PARTS = re.compile(r"frac\s*\d\s*\\")  # \frac1\pi: the 1 is above the line
_SHORT_FRAC = re.compile(r"\\frac\s*(\d)\s*(\d)")


def respelled(text: str, rng: Random) -> str:
    """Return the same answer in other LaTeX."""
    times = rng.choice((" ", " \\cdot ", "", "\\,", " \\times "))
    line = rng.choice(("\\dfrac", "\\tfrac", "\\frac"))
    moves: list[Callable[[str], str]] = [
        lambda t: _SHORT_FRAC.sub(r"\\dfrac{\1}{\2}", t),
        lambda t: _FRAC.sub(lambda _: line, t),
        lambda t: re.sub(r"\s*([+=])\s*|(?<=[\w})])\s*(-)\s*", lambda m: f" {m[1] or m[2]} ", t) if "^" not in t else t,
        lambda t: re.sub(r"\s*,\s*", ", ", t),
        lambda t: t if _BARE_PARTS.search(t) else _FACTOR.sub(lambda _: times, t),
        lambda t: re.sub(r"\\sqrt\{(\d)\}(?!\d)", r"\\sqrt\1", t),
        lambda t: re.sub(r"\^(\d)(?!\d)", r"^{\1}", t),
        lambda t: (
            t.replace("(", "\\left(").replace(")", "\\right)")
            if "\\left" not in t and t.count("(") == t.count(")")
            else t
        ),
        lambda t: t.replace("\\left", "").replace("\\right", ""),
    ]
    for move in rng.sample(moves, len(moves)):
        new = move(text)
        if new != text:
            text = new
            if rng.random() < 0.5:
                break
    return text


def said(text: str, rng: Random) -> str:
    """Return the answer, sometimes with the words that people write around an answer."""
    if rng.random() > 0.2:
        return text
    shapes = ["The answer is {}.", "the answer is {}", "Answer: {}", "{}."]
    if "$" not in text and "°" not in text:
        shapes += (
            ["${}$", "${}$", "\\({}\\)", "\\boxed{{{}}}", "= {}"]
            if not re.search(r"[A-Za-z]{2,}", _COMMAND_OR_TEXT.sub("", text))
            else []
        )
    return rng.choice(shapes).format(text).replace("..", ".")


def changed(text: str, how: str, rng: Random) -> str | None:
    """Return the text with one numeral or sign changed, None where this is impossible."""
    hidden = [found.span() for found in _COMMAND_OR_TEXT.finditer(text)]

    def free(at: int) -> bool:
        return not any(start <= at < end for start, end in hidden)

    if how == "sign":
        signs = [found for found in _TERM_SIGN.finditer(text) if free(found.start())]
        if signs and rng.random() < 0.7:
            found = rng.choice(signs)
            return text[: found.start()] + found[0].translate({43: "-", 45: "+"}) + text[found.end() :]
        heads = [
            m
            for m in re.finditer(r"(?:^|(?<=[(\[,{]))(\s*)(-?)(?=[\s\w\\])", text)
            if m.end() < len(text) and text[m.end()] not in "{}" and not (m.start() and text[m.start() - 1] == "{")
        ]
        if not heads:
            return None
        found = rng.choice(heads)
        if re.match(r"\s*\\(?:text|left|infty|cup|mbox|\{)", text[found.end() :]) or re.match(
            r"\s*0(?!\d)", text[found.end() :]
        ):
            return None
        return text[: found.start()] + found[1] + ("" if found[2] else "-") + text[found.end() :]
    numerals = [found for found in _NUMERAL.finditer(text) if free(found.start())]
    if not numerals:
        return None
    found = rng.choice(numerals)
    new = _numeral(found[0], how, rng)
    return new and text[: found.start()] + new + text[found.end() :]


def _numeral(text: str, how: str, rng: Random) -> str | None:
    if how == "off_by_one":
        return str(int(text) + rng.choice((1, -1))) if int(text) else "1"
    if how == "digits":
        if len(text) < 2:
            return None
        at = rng.randrange(len(text) - 1)
        new = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    else:
        new = text[1:] if len(text) > 1 and rng.random() < 0.5 else text + text[-1]
    return None if new == text or new.startswith("0") else new
