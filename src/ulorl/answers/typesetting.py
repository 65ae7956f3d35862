"""Texts without what typesetting adds to them."""

from __future__ import annotations

import re
import unicodedata

_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mbox|operatorname|boxed|fbox)\s*\{([^{}]*)\}"
)
_LAYOUT = re.compile(r"\\(?:left|right|displaystyle|textstyle)(?![A-Za-z])|\\!")
_SPACE = re.compile(r"\\q?quad(?![A-Za-z])|\\[,;: ]|~")
_PUNCTUATION = re.compile(r" ?([^\w\s\\.'\"]) ?")
_ENCLOSED = re.compile(
    r"\$\$(.*)\$\$|\$(.*)\$|\\\((.*)\\\)|\\\[(.*)\\\]|\*\*(.*)\*\*|\"(.*)\"|“(.*)”|`(.*)`", re.DOTALL
)
_TRAILING = " \t\r\n.。"
LAYERS = 4  # of wrappers around each other


def unwrapped(text: str) -> str:
    r"""Without \text{} and its like, spacing commands, enclosing dollar signs, quotes, Markdown; one space for many."""
    for _ in range(LAYERS):
        text = _WRAPPER.sub(r"\1", text)
    text = " ".join(_SPACE.sub(" ", _LAYOUT.sub("", text)).split())
    for _ in range(LAYERS):
        if not (enclosed := _ENCLOSED.fullmatch(text)):
            break
        text = next(inner for inner in enclosed.groups() if inner is not None).strip()
    return text


def normalised(text: str) -> str:
    """What reward.kind=exact compares: `unwrapped`, in one letter case, without a full stop at the end and without
    spaces beside punctuation."""
    text = unwrapped(unicodedata.normalize("NFC", unwrapped(text).rstrip(_TRAILING)))
    return _PUNCTUATION.sub(r"\1", text).casefold()
