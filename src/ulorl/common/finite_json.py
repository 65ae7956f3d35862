"""Reads JSON in which every number is one: what a float cannot express becomes None."""

from __future__ import annotations

import json
import math

_WHOLE_DIGITS = 19  # of whole numbers that are kept exactly; longer ones become floats, as in a browser


def _real(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None  # 1e999 is valid JSON, and infinite as a float


def _whole(text: str) -> int | float | None:
    return int(text) if len(text) <= _WHOLE_DIGITS else _real(text)


# NaN and Infinity are no JSON, but Python and other writers write them.
FINITE_JSON = json.JSONDecoder(parse_constant=lambda _: None, parse_float=_real, parse_int=_whole)
