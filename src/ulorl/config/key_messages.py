"""One line for each error that pydantic finds in a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel


def explain(error: Mapping[str, Any], section: type[BaseModel], within: tuple[str, ...] = ()) -> str:
    """One line for one of pydantic's errors in `section`, which stands at the key `within`."""
    loc = [part for part in error["loc"] if not str(part).endswith("]")]  # the branches of a union
    key = ".".join(str(part) for part in (*within, *loc))
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key{_nearest(error['loc'], section)}"
    if error["type"] == "missing":
        return f"{key}: missing"
    if error["type"] == "value_error":  # ours: names the key itself
        return f"{'.'.join(within)}: {error['ctx']['error']}" if within else str(error["ctx"]["error"])
    if error["type"] == "model_type":
        return f"{key}: expected a table of keys, found {short_repr(error['input'])}"
    return f"{key}: {error['msg']}, found {short_repr(error['input'])}"


def short_repr(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python prints no integers beyond 4,300 digits
        text = f"an integer of {value.bit_length()} bits"
    return text if len(text) <= 80 else f"{text[:80]}..."


def _nearest(loc: Sequence[Any], top: type[BaseModel]) -> str:
    section: type[BaseModel] | None = top
    for part in loc[:-1]:
        inner = section.model_fields[part].annotation if section and part in section.model_fields else None
        section = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None
    if section is None:
        return ""
    near = get_close_matches(str(loc[-1]), section.model_fields, n=1)
    return f"; did you mean {near[0]}?" if near else f"; the keys here are {', '.join(section.model_fields)}"
