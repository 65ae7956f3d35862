"""Which keys a resumed run may change: each field says so itself (`fields.MAY_CHANGE`)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from ulorl.config.fields import FIXED, MAY_CHANGE, StrictConfig
from ulorl.config.tree import Config
from ulorl.config.unions import variants_of


@cache
def resumable_keys() -> tuple[str, ...]:
    """Return the dotted keys that a resumed run may change. A section among them allows all its keys."""
    return tuple(dict.fromkeys(_resumable(Config, "")))


def may_change(key: str) -> bool:
    """Return whether a resumed run may change a dotted key."""
    return any(key == free or key.startswith(free + ".") for free in resumable_keys())


def _resumable(section: type[StrictConfig], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        if field.json_schema_extra == MAY_CHANGE:
            yield prefix + name
        elif field.json_schema_extra != FIXED:
            for inner in variants_of(field.annotation).values():
                yield from _resumable(inner, f"{prefix}{name}.")
