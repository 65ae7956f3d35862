r"""Finds labelled lists of any content in a question: (a) ... (b) ..., A. B., \textbf{(A)}, \item, (1)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from ulorl.answers.normalisation import HAN
from ulorl.cleaning.question_text import undrawn

_UPPER, _LOWER, _DIGITS = "ABCDEFGHIJ", "abcdefghij", tuple(str(n) for n in range(1, 11))
_ROMANS = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii")
_OPEN, _CLOSE = r"[(\[（]\s*", r"\s*[)\]）]"
_FREE = r"(?<![A-Za-z0-9){}^_\\])"  # no argument of a function, no index
_APART = rf"(?:(?<=^)|(?<=[\s;；,，:：。.)）□{HAN}]))"
_NO_PAIR = r"(?:(?<=^)|(?<=\n)|(?<=[^,] ))"  # nothing that closes a pair: (3, 1)
_STYLES: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("A", tuple(_UPPER), rf"{_FREE}{_OPEN}([A-J]){_CLOSE}"),
    ("A", tuple(_UPPER), rf"{_APART}([A-J])\s?[.．、)）:：](?![A-Za-z]\.)"),
    ("a", tuple(_LOWER), rf"{_FREE}{_OPEN}([a-j]){_CLOSE}"),
    ("a", tuple(_LOWER), rf"{_NO_PAIR}([a-j])(?:[.)](?=\s)|\)(?=[A-Z$\\]))"),
    ("1", _DIGITS, rf"{_FREE}{_OPEN}(\d\d?){_CLOSE}"),
    ("1", _DIGITS, rf"{_NO_PAIR}(\d\d?)(?:[.)](?=\s|\\?\$|\\\(|[{HAN}])|[、．)）](?=\s*[{HAN}$\\]))"),
    ("1", tuple("①②③④⑤⑥⑦⑧"), r"([①-⑧])"),
    ("1", tuple("一二三四五六"), rf"{_OPEN}([一二三四五六]){_CLOSE}"),
    ("i", _ROMANS, rf"{_FREE}{_OPEN}([ivx]+){_CLOSE}"),
    ("i", _ROMANS, rf"{_NO_PAIR}([ivx]+)(?:[.)](?=\s)|\)(?=[A-Z$\\]))"),
    ("i", tuple(r.upper() for r in _ROMANS), r"(?:(?<=^)|(?<=\s))([IVX]+)[.)](?=\s)"),
    ("i", tuple(r.upper() for r in _ROMANS), rf"{_FREE}{_OPEN}([IVX]+){_CLOSE}"),
    ("i", tuple("ⅠⅡⅢⅣⅤⅥ"), r"[(（]\s*([Ⅰ-Ⅵ])\s*[)）]"),
    ("part", _DIGITS, r"(?:\b(?:[Qq]uestion|[Pp]roblem|[Pp]art|[Tt]ask|[Ee]xercise|Q)|问题)\s*\(?(\d)\)?"),
    ("part", tuple(_UPPER), r"\b(?:[Qq]uestion|[Pp]roblem|[Pp]art|[Tt]ask|[Ee]xercise)\s*\(?([A-J])\b\)?"),
    ("part", tuple(_LOWER), r"\b(?:[Qq]uestion|[Pp]roblem|[Pp]art|[Tt]ask|[Ee]xercise)\s*\(?([a-j])\b\)?"),
)  # fmt: skip
_COMPILED = tuple((style, order, re.compile(pattern, re.M)) for style, order, pattern in _STYLES)
_BOLD = re.compile(r"\\(?:textbf|text|mathrm|mathbf|textrm|rm|bf)\s*\{\s*\(?\s*([A-Ja-j])\s*\)\s*(?:\\\s)?\s*\}?")
_TEXT = re.compile(r"\\text\s*\{\s*([A-J])[.)]\s*")
_BOLD_INSIDE = re.compile(r"\(\s*\\(?:textbf|text|mathrm|mathbf)\s*\{\s*([A-J])\s*\}\s*\)")
_MARKDOWN = re.compile(r"(?<!\*)\*\*\s*\(?([A-Ja-j]|[ivx]+|\d)(?:\)[.:]?|[.:])\s*\*\*")
_ROMAN_HAN = re.compile(r"[(（]\s*(I ?I ?I|I ?I|I ?V|I|V)\s*[)）]")
_ENUMERATE = re.compile(r"\\begin\{(enumerate|itemize)\}(\[[^\]]*\])?(.*?)\\end\{\1\}", re.S)
_ITEM = re.compile(r"\\item\s*(?:\[([^\]]*)\])?")
_BULLET = re.compile(r"^\s*[-*•]\s+(?=\S)", re.M)


@dataclass(frozen=True)
class LabelledList:
    """A list in a question.

    stem: the text before it; bodies: what each label labels; tail: the text after the last body.
    """

    style: str  # A, a, 1, i or part
    stem: str
    labels: tuple[str, ...]
    bodies: tuple[str, ...]
    tail: str


@lru_cache(maxsize=8192)
def labelled_lists(question: str) -> tuple[LabelledList, ...]:
    """Return the longest list of a question for each kind of label."""
    text = _plain_labels(undrawn(question))
    return tuple(found for style, order, pattern in _COMPILED if (found := _longest(text, style, order, pattern)))


def bullets(question: str) -> tuple[str, ...]:
    """Return the text of each line that begins with a bullet."""
    parts = _BULLET.split(undrawn(question))
    return tuple(part.partition("\n")[0] for part in parts[1:])


def _plain_labels(text: str) -> str:
    r"""`\textbf{(A)}`, `\mathrm{(A) \ 3}`, `**A.**` and `\item` as plain labels."""
    text = _ENUMERATE.sub(lambda found: "\n" + _items(found[3], found[2] or ""), text)
    if re.search(f"[{HAN}]", text):  # Chinese texts mix (1), (I), （ I ）and (Ⅱ) in one list
        text = _ROMAN_HAN.sub(lambda found: f"({_ROMANS.index(found[1].replace(' ', '').lower()) + 1})", text)
    for pattern in (_BOLD, _TEXT, _BOLD_INSIDE, _MARKDOWN):
        text = pattern.sub(r" (\1) ", text)
    return text


def _items(inside: str, option: str) -> str:
    order = _UPPER if "Alph" in option else _LOWER if "alph" in option else _DIGITS
    numbers = iter(order)
    return _ITEM.sub(lambda found: f" {found[1] or '(' + next(numbers, '') + ')'} ", inside) + "\n\n"


def _longest(text: str, style: str, order: tuple[str, ...], pattern: re.Pattern[str]) -> LabelledList | None:
    found = [match for match in pattern.finditer(text) if match[1] in order]
    chains = [_chain(found[i:], order) for i, match in enumerate(found) if match[1] == order[0]]
    chain = max(reversed(chains), key=len, default=[])  # the last of equals: an earlier (1) may be an argument
    if len(chain) < 2:
        return None
    bodies = [text[a.end() : b.start()] for a, b in pairwise(chain)]
    last, tail = _last_body(text[chain[-1].end() :], one_line=not any("\n" in body.strip() for body in bodies))
    return LabelledList(style, text[: chain[0].start()], tuple(m[1] for m in chain), (*bodies, last), tail)


def _chain(found: list[re.Match[str]], order: tuple[str, ...]) -> list[re.Match[str]]:
    def walk() -> Iterator[re.Match[str]]:
        position = 0
        for match in found:
            if position < len(order) and match[1] == order[position]:
                position += 1
                yield match

    return list(walk())


def _last_body(rest: str, *, one_line: bool) -> tuple[str, str]:
    """The last body ends with its line if the others do, else with its paragraph."""
    lead = len(rest) - len(rest.lstrip())
    end = re.compile(r"\n" if one_line else r"\n\s*\n").search(rest, lead)
    return (rest[: end.start()], rest[end.start() :]) if end else (rest, "")
