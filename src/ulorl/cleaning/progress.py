"""Progress bars of a long run, on standard error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ulorl.cleaning.model_steps import Progress as Show
from ulorl.clients.client import Watch


@contextmanager
def bars() -> Iterator[Show]:
    """A function from (what it says, how much there is; 0: unknown) to one that is told of progress. Without a terminal
    it is silent."""
    with Progress(
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:

        def show(name: str, total: int) -> Watch:
            task = progress.add_task(name, total=total or None)
            return lambda done: progress.advance(task, done)

        yield show
