"""Dotted paths into nested mappings and lists, such as `rollout.group` or `prompt.0.content`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def look_up(tree: Mapping[str, Any], path: str, default: Any = None) -> Any:
    """Return the value at a dotted path, `default` where there is none. A key that is spelled like the whole path comes
    first; a decimal part of the path is an index where the value is a list."""
    if path in tree:
        return tree[path]
    value: Any = tree
    for part in path.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return default
    return value


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings by their dotted keys, in order. An empty mapping is a leaf, and so is a
    list."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {prefix + key: value}
    return flat
