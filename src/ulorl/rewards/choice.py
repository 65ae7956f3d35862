r"""Which options an answer to a multiple-choice question chooses: `(B)`, `B.`, `B) 7 cm`, `option B`, `\text{B}`,
`A, C`, or an option's own text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import ascii_uppercase

from ulorl.errors import UserError
from ulorl.rewards.text import normalised, unwrapped
from ulorl.types import Problem

_LETTER = r"\(?\[?([A-Za-z])\]?\)?[.:]?"
_LETTERS = re.compile(rf"{_LETTER}(?:(?:\s*(?:,|;|&|/)\s*(?:and\s|&\s)?|\s+and\s+|\s+){_LETTER})*")
_RUN = re.compile(r"[A-J]{2,10}")
_HEAD = re.compile(r"[(\[]([A-Za-z])[)\]][.:]?\s|([A-Z])[).:]\s*\S|([a-z])\)\s*\S")
_SAID = re.compile(
    r"\b(?:options?|choices?|answers?)(?:\s+(?:is|are))?\s*[:=]?\s*[(\[]?([A-Z])(?![A-Za-z'’])|[(\[]([A-Z])[)\]]"
)
_FILLER = re.compile(
    r"(?:the |my |final |correct |best )*(?:options?|choices?|answers?)(?: (?:is|are))?\s*[:=]?\s+", re.I
)


def options_of(problem: Problem) -> Mapping[str, str]:
    """Letter to text, from `problem.meta["options"]` (or "choices"): a list, or an object with letters for its keys;
    empty without. Raises UserError for anything else."""
    options = problem.meta.get("options", problem.meta.get("choices"))
    if options is None:
        return {}
    if isinstance(options, list) and len(options) <= len(ascii_uppercase):
        return {letter: _bare(str(text), letter) for letter, text in zip(ascii_uppercase, options, strict=False)}
    if isinstance(options, Mapping) and all(len(key) == 1 and key.isalpha() for key in options):
        return {letter.upper(): _bare(str(text), letter) for letter, text in options.items()}
    raise UserError(
        f"problem {problem.id}: its options are {options!r}; expected a list of at most 26 texts, or letters with texts"
    )


def _bare(text: str, letter: str) -> str:
    """An option's text without its own letter."""
    return normalised(re.sub(rf"^\s*[(\[]?{letter}[)\].:]\s*", "", text, flags=re.IGNORECASE))


def chosen(text: str, options: Mapping[str, str] | None = None) -> frozenset[str] | None:
    """The letters an answer chooses; None when it names none, or when what it names is not clear.

    options: letter to normalised text; then an option's text stands for its letter, and other letters are no options.
    """
    options = options or {}
    by_text = [letter for letter, option in options.items() if option and option == normalised(text)]
    if len(by_text) == 1:
        return frozenset(by_text)
    bare = unwrapped(text).rstrip(".").strip()
    filler = _FILLER.match(bare)
    letters = _letters(bare[filler.end() :] if filler else bare)
    return letters if letters and (not options or letters <= options.keys()) else None


def _letters(text: str) -> frozenset[str]:
    if _LETTERS.fullmatch(text):
        return frozenset(re.sub(r"\band\b|[^A-Za-z]", "", text).upper())
    if _RUN.fullmatch(text) and list(text) == sorted(set(text)):  # ACD; no word
        return frozenset(text)
    if head := _HEAD.match(text):
        return frozenset(next(letter for letter in head.groups() if letter).upper())
    said = {letter for pair in _SAID.findall(text) for letter in pair if letter}
    return frozenset(said) if len(said) == 1 else frozenset()
