"""Reads the saved configurations (config.json) of earlier versions as the present version would have written them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ulorl.config.key_messages import RENAMED
from ulorl.config.layering import without_other_kinds
from ulorl.config.tree import Config, without_other_eval_kinds
from ulorl.config.unions import variants_of


def upgraded(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a saved configuration with the present names, and without keys that do not apply to their `kind`.

    Earlier versions wrote the keys of every kind. Keys that no kind has are kept, so that the check refuses them.
    """
    tree = dict(saved)
    for old, new in RENAMED.items():
        tree = _renamed(tree, old.split("."), new.split("."))
    tree = without_other_kinds(variants_of(Config), tree, tree, always=True)
    return without_other_eval_kinds(tree, tree, always=True)


def _renamed(tree: dict[str, Any], old: list[str], new: list[str]) -> dict[str, Any]:
    """Return the tree with the value at the key `old` moved to the key `new`; as it is where there is no `old`."""
    *tables, name = old
    tree = _copied(tree)
    source: Any = tree
    for table in tables:
        source = source.get(table) if isinstance(source, dict) else None
    if not isinstance(source, dict) or name not in source:
        return tree
    value, target = source.pop(name), tree
    for table in new[:-1]:
        target = target.setdefault(table, {})
    target[new[-1]] = value
    return tree


def _copied(tree: Any) -> Any:
    return {key: _copied(value) for key, value in tree.items()} if isinstance(tree, dict) else tree
