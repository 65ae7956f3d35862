"""The data of a page as JSON that can stand inside an HTML document."""

from __future__ import annotations

import json
from typing import Any


def as_json(data: Any) -> str:
    """Return JSON that can stand in a script element: no tag, comment or entity can begin in it. Halves of a character
    that UTF-8 cannot express become question marks."""
    text = (
        json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(errors="replace").decode()
    )
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def size_of(data: Any) -> int:
    """Return how many bytes `as_json` takes, as an element of a list: with a comma."""
    return len(as_json(data).encode()) + 1
