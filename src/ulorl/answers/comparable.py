"""One form for questions that differ in typesetting only, by which they are known to be the same."""

from __future__ import annotations

import re
import unicodedata

HAN = r"\u3400-\u9fff\uf900-\ufaff"
_TOKEN = re.compile(rf"[{HAN}]|[^\W\d_{HAN}]+|\d+|[^\w\s]", re.U)
_LAYOUT = re.compile(
    r"\\(?:left|right|displaystyle|textstyle|limits|nolimits|quad|qquad|big|Big|bigg|Bigg)(?![A-Za-z])"
    r"|\\[,;:! ]|[$~]|\\[()\[\]]"
)


def comparable(text: str) -> str:
    """One form for texts that differ in typesetting only: letter case, spaces, dollar signs, kinds of fractions."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = _LAYOUT.sub(" ", text).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    return " ".join(_TOKEN.findall(text)).rstrip(" .?!:;,")
