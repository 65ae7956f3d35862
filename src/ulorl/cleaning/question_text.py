"""Views of a question's text that several steps need: its prose without mathematics, its words, its numbers."""

from __future__ import annotations

import re
from functools import lru_cache

from ulorl.answers.normalisation import comparable_question

MATH = "\u00a4"  # the sign for a formula
DRAWING = re.compile(r"\[asy\].*?\[/asy\]|\\begin\{(asy|tikzpicture)\}.*?\\end\{\1\}", re.S)
_FORMULA = re.compile(r"\\\[.*?\\\]|\\\(.*?\\\)|\$\$.+?\$\$|(?<!\\)\$[^$]{1,400}?(?<!\\)\$", re.S)
_TEXT_IN_MATH = re.compile(r"\\(?:text|textbf|mathrm|operatorname|mbox|begin|end)\*?\s*\{[^{}]*\}")
_TWO_WORDS = re.compile(r"[A-Za-z]{3,},? [A-Za-z]{2,}")
_NUMBER = re.compile(r"\d+")


def undrawn(text: str) -> str:
    """Return the text without the code of drawings, whose labels are no options."""
    return DRAWING.sub(" ", text)


@lru_cache(maxsize=65536)
def prose(text: str) -> str:
    """Return the text without drawings, with one sign (`MATH`) for each formula.

    The sign keeps a question mark of the formula. Dollar signs of money enclose words; such text stays.
    """

    def mask(found: re.Match[str]) -> str:
        if _TWO_WORDS.search(_TEXT_IN_MATH.sub("", found[0])):
            return found[0]
        return MATH + ("?" if "?" in found[0][-6:] else "")

    return _FORMULA.sub(mask, undrawn(text))


def words(text: str) -> list[str]:
    """Return the words and numbers of a text in its comparable form; each Chinese character is a word.

    Punctuation is left out, since copies of a problem differ in it.
    """
    return [token for token in comparable_question(text).split() if token[0].isalnum()]


def numbers(text: str) -> tuple[str, ...]:
    """Return the numbers of a text, sorted: problems that differ in them are different problems."""
    return tuple(sorted(_NUMBER.findall(undrawn(text))))
