"""Progress bars: on a terminal, and nothing elsewhere."""

from __future__ import annotations

import io
import re

from rich.console import Console

from ulorl.common.progress import SILENT, ProgressBars


def drawn(console: Console, *, shown: bool = True) -> str:
    with ProgressBars(console, shown=shown) as bars:
        bar = bars.add("judged", 4)
        bar.advance(2)
        bar.advance()
        bar.show(status="loss [0.5]")
        bars.refresh()
        bar.show(completed=7, total=9)
        bars.refresh()
        bar.remove()
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None, _environ={"TERM": "xterm"})


def test_bars_on_a_terminal() -> None:
    text = drawn(terminal())
    for part in ("judged", "3/4", "loss [0.5]", "7/9"):
        assert part in text


def test_nothing_elsewhere() -> None:
    assert drawn(terminal(), shown=False) == ""
    assert drawn(Console(file=io.StringIO(), width=120)) == ""
    SILENT.add("nothing").advance()


def test_on_a_narrow_terminal_a_bar_keeps_to_its_line() -> None:
    file = io.StringIO()
    with ProgressBars(Console(file=file, force_terminal=True, width=80)) as bars:
        bars.add("steps", 120).show(status="accuracy 53.8%  reward 0.520  entropy 0.269")
        bars.add("rollout", 177, tokens=lambda: 10**6)
        bars.refresh()
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue()).replace("\r", "\n").split("\n")
    assert {line.split()[0] for line in lines if line.strip()} == {"steps", "rollout"}
