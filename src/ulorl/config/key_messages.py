"""Turns the errors that pydantic finds in a configuration into findings: a key, what is wrong with it, and a code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ulorl.config.fields import Finding, RefusedKeys, StrictConfig
from ulorl.config.unions import Variants, named_variants_of, variants_of
from ulorl.error_codes import ErrorCode

RENAMED: dict[str, str] = {}  # the old dotted key: the new one, which a recipe is refused with

_TYPES = ("model_type", "model_attributes_type", "union_tag_not_found")  # no table where one is expected


def findings_of(error: ValidationError, variants: Variants, within: Sequence[str] = ()) -> list[Finding]:
    """Return what is wrong, key by key.

    variants: the sections that the checked tree may be. within: the dotted key of that tree, in parts.
    """
    return [finding for found in error.errors() for finding in _findings(found, _Place(found["loc"], variants, within))]


def short_repr(value: Any) -> str:
    """Return a value as Python writes it, at most 80 characters long."""
    try:
        text = repr(value)
    except ValueError:  # Python prints no integers beyond 4,300 digits
        text = f"an integer of {value.bit_length()} bits"
    return text if len(text) <= 80 else f"{text[:80]}..."


class _Place:
    """Where pydantic found an error.

    key: without the tags of unions. section: the class that has, or lacks, the last part of the key; None in a table
    of free keys. siblings: the classes that the section could be by its kind. at: the sections at the key itself.
    """

    def __init__(self, loc: Sequence[Any], variants: Variants, within: Sequence[str]) -> None:
        self.section: type[StrictConfig] | None = None
        self.siblings: Variants = {}
        self.kind = ""
        parts, self.at = list(within), variants
        named: Variants = {}  # the sections below a table of free names
        there, kind = variants.get(""), ""
        for part in map(str, loc):
            if part.endswith("]"):  # the branch of a union of plain types
                continue
            if there is None and part in self.at:
                there, kind = self.at[part], part
                continue
            parts.append(part)
            self.section, self.siblings, self.kind = there, self.at, kind
            field = there.model_fields.get(part) if there else None
            self.at, named = (
                (variants_of(field.annotation), named_variants_of(field.annotation)) if field else (named, {})
            )
            there, kind = self.at.get(""), ""
        self.key = ".".join(parts)

    @property
    def parent(self) -> str:
        """The dotted key of the section."""
        return self.key.rpartition(".")[0]

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition(".")[2]


def _findings(error: ErrorDetails, place: _Place) -> Iterator[Finding]:
    key, value, kind = place.key, error["input"], error["type"]
    if kind == "extra_forbidden":
        yield from _unknown(place, value)
    elif kind == "missing":
        field = place.section.model_fields.get(place.name) if place.section else None
        meaning = f"; {field.description}" if field and field.description else ""
        yield Finding(key, f"missing{meaning}", ErrorCode.CONFIG_MISSING_KEY)
    elif kind == "value_error":
        refused = error["ctx"]["error"]
        found = refused.findings if isinstance(refused, RefusedKeys) else [Finding("", str(refused))]
        yield from (Finding(".".join(filter(None, (key, one.key))), one.text, one.code) for one in found)
    elif kind in _TYPES:
        text = f"expected a table of keys, found {short_repr(value)}"
        yield Finding(key, text, ErrorCode.CONFIG_BAD_VALUE)
    elif kind == "union_tag_invalid":
        chosen = value.get("kind") if isinstance(value, Mapping) else value
        text = f"expected {' or '.join(place.at)}, found {short_repr(chosen)}"
        yield Finding(f"{key}.kind" if key else "kind", text, ErrorCode.CONFIG_BAD_VALUE)
    else:
        yield Finding(key, f"{error['msg']}, found {short_repr(value)}", ErrorCode.CONFIG_BAD_VALUE)


def _unknown(place: _Place, value: Any) -> Iterator[Finding]:
    """Yield why a key cannot be set: it has another name, or goes with another kind, or there is none like it."""
    if new := RENAMED.get(place.key):
        yield Finding(place.key, f"is now named {new}", ErrorCode.CONFIG_RENAMED_KEY)
        return
    owners = [kind for kind, section in place.siblings.items() if place.name in section.model_fields]
    if owners:
        kind = f"{place.parent}.kind" if place.parent else "kind"
        text = f"goes with {kind}={' or '.join(owners)} only, found {kind}={place.kind}"
        for key in _leaves(place.key, value):
            yield Finding(key, text, ErrorCode.CONFIG_UNKNOWN_KEY)
        return
    known = list(place.section.model_fields) if place.section else []
    near = [*get_close_matches(place.name, known, n=1), *_deeper(place)]
    hint = (
        f"; did you mean {' or '.join(near[:3])}?"
        if near
        else f"; the keys here are {', '.join(known)}"
        if known
        else ""
    )
    yield Finding(place.key, f"unknown key{hint}", ErrorCode.CONFIG_UNKNOWN_KEY)


def _deeper(place: _Place) -> Iterator[str]:
    """Yield the dotted keys of the name in the sections of the section: optim.lr of lr."""
    for section, field in (place.section.model_fields if place.section else {}).items():
        if any(place.name in variant.model_fields for variant in variants_of(field.annotation).values()):
            yield ".".join(filter(None, (place.parent, section, place.name)))


def _leaves(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner)
    else:
        yield key
