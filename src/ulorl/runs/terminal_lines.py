"""Prints what a run shows on the terminal: a line for each step under a header, and tables of label and value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

_COLUMNS: tuple[tuple[str, str, int, str], ...] = (  # title, metric, width, format
    ("reward", "reward/mean", 7, ".3f"),
    ("entropy", "entropy/mean", 8, ".3f"),
    ("MPT", "mpt/fraction", 6, ".1%"),
    ("masked", "mpt/masked_fraction", 7, ".1%"),
    ("ratio", "importance/ratio_mean", 6, ".3f"),
    ("clip", "importance/clip_fraction", 6, ".1%"),
    ("done", "rollout/finished", 5, ".0f"),
    ("carried", "rollout/carried", 8, ".0f"),
    ("trunc", "rollout/truncated", 6, ".0f"),
    ("segs", "rollout/segments_mean", 5, ".2f"),
    ("tokens", "rollout/tokens", 8, ",.0f"),
    ("seconds", "time/step", 8, ".1f"),
)
HEADER = " step" + "".join(f"{title:>{width}}" for title, _, width, _ in _COLUMNS) + "  held-out"


def metrics_line(step: int, metrics: Mapping[str, float | int | None]) -> str:
    """Return the line of one step under HEADER, with `-` for a value that does not exist."""
    cells = [f"{step:>5}"]
    for _, name, width, spec in _COLUMNS:
        value = metrics.get(name)
        cells.append(f"{'-' if value is None else format(value, spec):>{width}}")
    accuracy, low, high = (metrics.get(f"eval/accuracy{end}") for end in ("", "_low", "_high"))
    held_out = "" if accuracy is None else f"  {accuracy:.1%}"
    return "".join(cells) + held_out + ("" if low is None or high is None else f" ({low:.1%} to {high:.1%})")


def print_line(console: Console, text: str, style: str | None = None) -> None:
    """Print one line, neither wrapped nor interpreted as markup, in the characters that the output can encode."""
    console.print(Text(_encodable(text, console)), style=style, soft_wrap=True)


def print_table(console: Console, title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Print rows of label and value: as a table on a terminal, as plain aligned lines elsewhere."""
    if console.is_terminal:
        table = Table("", "", title=title, show_header=False, title_justify="left")
        for label, value in rows:
            table.add_row(label, Text(value, overflow="fold"))
        console.print(table)
        return
    width = max((len(label) for label, _ in rows), default=0)
    for label, value in rows:
        print_line(console, f"{label:<{width}}  {value}")


def _encodable(text: str, console: Console) -> str:
    """Return the text in characters that the output can encode: a log file in ASCII must not stop a run."""
    try:
        text.encode(console.encoding)
    except UnicodeEncodeError:
        return text.replace("→", "->").encode(console.encoding, "replace").decode(console.encoding)
    return text
