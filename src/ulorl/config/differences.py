"""The settings of a run that differ from their defaults."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from ulorl.config.tree import Config


class Difference(NamedTuple):
    """A setting that is not its default, as JSON has the two. default: None where there is none, or it is None."""

    key: str
    value: Any
    default: Any


def from_defaults(config: Config) -> list[Difference]:
    """Return the settings that differ from their defaults, in the order of docs/configuration.md. Where a section has
    another `kind` than by default, its other keys are compared with the defaults of that kind."""
    return list(_differences(config, Config.model_construct(), ""))


def _differences(section: BaseModel, default: Any, prefix: str) -> Iterator[Difference]:
    if type(section) is not type(default):
        if kind := getattr(section, "kind", None):
            yield Difference(f"{prefix}kind", kind, getattr(default, "kind", None))
        default = type(section).model_construct()
    for name in type(section).model_fields:
        value, other = getattr(section, name), getattr(default, name, None)
        if isinstance(value, BaseModel):
            yield from _differences(value, other, f"{prefix}{name}.")
        elif value != other:
            yield Difference(prefix + name, to_jsonable_python(value), to_jsonable_python(other))
