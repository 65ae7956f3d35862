"""Lays the tables of recipes and overrides over each other.

A later layer may choose another `kind` for a section. The keys of earlier layers that the new kind does not have
belonged to the other kind, and are dropped. Keys of the same or of a later layer that do not apply are kept, so that
the check of the result refuses them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ulorl.config.unions import Variants, kind_in, named_variants_of, variants_of

Tree = Mapping[str, Any]


def add_layer(variants: Variants, below: Tree, changes: Sequence[Tree]) -> dict[str, Any]:
    """Return `below` with the changes of one layer, in their order, without the keys of kinds that it leaves.

    variants: the sections that the whole tree may be.
    """
    return merged(without_other_kinds(variants, below, merged(below, changes)), changes)


def merged(below: Tree, changes: Sequence[Tree]) -> dict[str, Any]:
    """Return `below` with the changes laid over it in their order. An empty table replaces what was there."""
    result = dict(below)
    for change in changes:
        result = _merge(result, change)
    return result


def without_other_kinds(variants: Variants, below: Tree, above: Tree, *, always: bool = False) -> dict[str, Any]:
    """Return `below` without the keys that apply only to other kinds than those that `above` chooses.

    always: also where both choose the same kind, else such keys stay there.
    """
    kind = kind_in(variants, above)
    section, changed = variants.get(kind), always or kind != kind_in(variants, below)
    kept = {}
    for name, value in below.items():
        field = section.model_fields.get(name) if section else None
        if section and field is None and changed and any(name in other.model_fields for other in variants.values()):
            continue
        then = above.get(name)
        if field is not None and isinstance(value, Mapping) and isinstance(then, Mapping):
            value = _inner(field.annotation, value, then, always)
        kept[name] = value
    return kept


def _inner(annotation: Any, below: Tree, above: Tree, always: bool) -> Tree:
    if variants := variants_of(annotation):
        return without_other_kinds(variants, below, above, always=always)
    if variants := named_variants_of(annotation):
        return {
            name: without_other_kinds(variants, value, above[name], always=always)
            if isinstance(value, Mapping) and isinstance(above.get(name), Mapping)
            else value
            for name, value in below.items()
        }
    return below


def _merge(below: Tree, above: Tree) -> dict[str, Any]:
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        joined = isinstance(old, Mapping) and isinstance(value, Mapping) and value
        both[key] = _merge(old, value) if joined else value  # type: ignore[arg-type]
    return both
