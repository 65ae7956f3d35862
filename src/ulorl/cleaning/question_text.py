"""What several steps ask of a question's text: its prose without mathematics, its tokens, its comparable form."""

from __future__ import annotations

import re
from functools import lru_cache

from ulorl.answers.normalisation import comparable_question

MATH = "\u00a4"  # stands where a formula stood
DRAWING = re.compile(r"\[asy\].*?\[/asy\]|\\begin\{(asy|tikzpicture)\}.*?\\end\{\1\}", re.S)
_FORMULA = re.compile(r"\\\[.*?\\\]|\\\(.*?\\\)|\$\$.+?\$\$|(?<!\\)\$[^$]{1,400}?(?<!\\)\$", re.S)
_TEXT_IN_MATH = re.compile(r"\\(?:text|textbf|mathrm|operatorname|mbox|begin|end)\*?\s*\{[^{}]*\}")
_TWO_WORDS = re.compile(r"[A-Za-z]{3,},? [A-Za-z]{2,}")
_NUMBER = re.compile(r"\d+")


def undrawn(text: str) -> str:
    """Without the code of drawings, whose labels are no options."""
    return DRAWING.sub(" ", text)


@lru_cache(maxsize=65536)
def prose(text: str) -> str:
    """Without drawings, a sign (and its question mark) for each formula. Dollars of money enclose words and stay."""

    def mask(found: re.Match[str]) -> str:
        if _TWO_WORDS.search(_TEXT_IN_MATH.sub("", found[0])):
            return found[0]
        return MATH + ("?" if "?" in found[0][-6:] else "")

    return _FORMULA.sub(mask, undrawn(text))


def words(text: str) -> list[str]:
    """Words and numbers of the comparable form; a Chinese character counts as a word. Signs are left out: they are what
    copies of a problem differ in."""
    return [token for token in comparable_question(text).split() if token[0].isalnum()]


def numbers(text: str) -> tuple[str, ...]:
    """The numbers of a text, sorted: problems that differ in them are different problems."""
    return tuple(sorted(_NUMBER.findall(undrawn(text))))
