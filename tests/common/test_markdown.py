"""Markdown that programs write."""

from __future__ import annotations

from ulorl.common.markdown import table


def test_table() -> None:
    assert table(("what", "n"), [("a|b", 1), ("c", None)]) == "| what | n |\n|---|---|\n| a\\|b | 1 |\n| c | None |"
    assert table(("what", "n", "m"), [], numbers_from=1) == "| what | n | m |\n|---|--:|--:|"
