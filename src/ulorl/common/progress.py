"""Progress bars. They are drawn by cursor movements, so on an interactive terminal only: elsewhere nothing is written,
and a log file holds no control characters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

Advance = Callable[[int], None]  # reports how many more items are done


class Bar:
    """One progress bar."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, done: int = 1) -> None:
        """Report that `done` more of the bar's total are done."""
        self._progress.advance(self._task, done)

    def show(self, *, completed: int | None = None, total: int | None = None, status: str | None = None) -> None:
        """Change what is given: how much is done, how much there is, the text behind the bar."""
        fields: dict[str, Any] = {} if status is None else {"status": status}
        self._progress.update(self._task, completed=completed, total=total, **fields)

    def remove(self) -> None:
        """Remove the bar from the terminal."""
        self._progress.remove_task(self._task)


class ProgressBars:
    """The progress bars of one command. A context manager: bars are drawn inside its block and removed at its end.

        with ProgressBars() as bars:
            bar = bars.add("judged", total=100)
            bar.advance()

    console: where to draw; standard error by default. shown: False draws nothing, on a terminal too.
    """

    def __init__(self, console: Console | None = None, *, shown: bool = True) -> None:
        console = console or Console(stderr=True)
        self.shown = shown and console.is_interactive
        self._progress = Progress(
            TextColumn("{task.description:<10}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            _Speed(Column(no_wrap=True)),  # else a narrow terminal breaks it into lines
            TextColumn("{task.fields[status]}", markup=False),
            console=console,
            refresh_per_second=4,
            transient=True,
            disable=not self.shown,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def add(self, name: str, total: int | None = None, tokens: Callable[[], int] | None = None) -> Bar:
        """Add a bar for `total` items, None where their number is unknown. tokens: a count that rises
        meanwhile, from which the bar shows tokens a second since now."""
        before = tokens() if tokens else 0
        since = (lambda: tokens() - before) if tokens else None
        return Bar(self._progress, self._progress.add_task(name, total=total, tokens=since, status=""))

    def refresh(self) -> None:
        """Draw at once."""
        self._progress.refresh()


class _Speed(ProgressColumn):
    """Tokens a second since the bar was added; computed at every refresh, so that it moves while segments are long."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        tokens, elapsed = task.fields.get("tokens"), task.elapsed
        return Text(f"{tokens() / elapsed:,.0f} tok/s" if tokens and elapsed else "")


SILENT = ProgressBars(shown=False)  # for callers that want no bars
