"""Markdown text that programs write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[object], rows: Iterable[Sequence[object]], *, numbers_from: int | None = None) -> str:
    """Return a Markdown table without a final line break. Bars inside cells are escaped.

    numbers_from: the first of the columns that are aligned to the right.
    """
    aligned = len(head) if numbers_from is None else numbers_from
    rule = "|---" * aligned + "|--:" * (len(head) - aligned) + "|"
    return "\n".join([_line(head), rule, *map(_line, rows)])


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
