"""Dotted paths into nested values."""

from __future__ import annotations

from ulorl.common.key_paths import flatten, look_up

TREE = {"a": {"b": [{"c": 1}, None], "d": {}}, "a.b": 2, "e": "text"}


def test_look_up() -> None:
    assert look_up(TREE, "a.b.0.c") == 1
    assert look_up(TREE, "a.b") == 2, "a key spelled like the path comes first"
    assert look_up(TREE, "a.b.1", default=3) is None, "None is a value"
    for missing in ("x", "a.x", "a.b.2", "a.b.-1", "a.b.c", "e.t", ""):
        assert look_up(TREE, missing, default=3) == 3


def test_flatten() -> None:
    assert flatten({"a": {"b": [1], "c": {"d": 2}}}) == {"a.b": [1], "a.c.d": 2}
