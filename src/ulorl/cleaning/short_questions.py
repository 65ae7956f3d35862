"""Finds short evaluation problems in other words.

They are too short for runs of words, so they are compared as a whole, by their numbers and content.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from ulorl.answers.normalisation import comparable_question
from ulorl.cleaning.question_text import undrawn, words

_ASKING = frozenset(
    re.findall(
        r"\w+",
        "find compute calculate evaluate determine solve simplify simplified simplest convert reduce write express "
        "what which is are the value of a an in to as and for that how many much answer your form give please be we "
        "it let if such with by on then all whose problem question following given enter number exact exactly can do "
        "does real suppose equal equation satisfying times 求 的 是 为 值",
    )
)
_DIGITS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_SPELLED = {word: str(number) for number, word in enumerate(_DIGITS, 1)} | {
    "least": "smallest", "last": "unit", "twice": "2"
}  # fmt: skip
_TYPESETTING = re.compile(r"[.,;:?!(){}\[\]\"'$\\&]|frac|d?binom|cdot|text|mathrm|circ")
_SHORT_FRACTION = re.compile(r"\\[dt]?frac\s*(\d)\s*(\d)")
_RARE_DIGITS = 4  # of different numbers with two digits or more, from which on the numbers identify a question
_REORDERED = 0.15  # added to the similarity where the numbers come in another order
_RARE = 0.2  # subtracted from it where the numbers are rare


@dataclass(frozen=True)
class Content:
    """The content of a question: its words and signs without those that only ask; all variables are one."""

    tokens: Counter[str]
    numbers: tuple[str, ...]  # in their order

    @property
    def rare(self) -> bool:
        """True if the numbers alone nearly identify the question: they have enough digits."""
        return sum(len(number) for number in set(self.numbers) if len(number) > 1) >= _RARE_DIGITS

    def is_copy_of(self, other: Content, similarity: float) -> bool:
        """Return whether two contents with the same numbers are one question.

        similarity: the Jaccard similarity of their counted tokens that is needed; less is enough for rare numbers, and
        more is needed if the numbers come in another order.
        """
        shared = sum((self.tokens & other.tokens).values()) / max(1, sum((self.tokens | other.tokens).values()))
        same_order = bool(self.numbers) and self.numbers == other.numbers
        if self.rare:
            return shared >= similarity - _RARE
        return shared >= (similarity if same_order else min(1, similarity + _REORDERED))


def content(question: str) -> Content:
    """Return the content of a question."""
    text = comparable_question(_SHORT_FRACTION.sub(r"\\frac{\1}{\2}", undrawn(question)))
    tokens = [_SPELLED.get(token, token) for token in text.split()]
    kept = [_stem(token) for token in tokens if token not in _ASKING and not _TYPESETTING.fullmatch(token)]
    return Content(Counter(kept), tuple(token for token in kept if token.isdecimal()))


def _stem(token: str) -> str:
    """One letter for every variable; a noun without its plural."""
    if len(token) == 1 and "a" <= token <= "z":
        return "x"
    return token[:-1] if len(token) > 3 and token.endswith("s") else token


class ShortQuestions:
    """Evaluation problems of fewer than `below` words, by their numbers."""

    def __init__(self, questions: Iterable[tuple[str, str]], below: int, similarity: float) -> None:
        self._similarity = similarity
        self._by_numbers: dict[tuple[str, ...], list[tuple[str, Content]]] = defaultdict(list)
        for name, question in questions:
            if len(words(undrawn(question))) < below:
                own = content(question)
                self._by_numbers[tuple(sorted(own.numbers))].append((name, own))

    def copied(self, question: str) -> str:
        """Return the name of the problem that the question rewords, or an empty text."""
        own = content(question)
        near = self._by_numbers.get(tuple(sorted(own.numbers)), ())
        return next((name for name, other in near if own.is_copy_of(other, self._similarity)), "")
