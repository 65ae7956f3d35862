"""Records a run while it trains: metrics.jsonl, trackers, stored samples, progress bars, and lines on the terminal."""

from __future__ import annotations

import json
import math
import numbers
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from rich.console import Console

from ulorl.common import atomic_files
from ulorl.common.progress import Bar, ProgressBars
from ulorl.config.tree import Config
from ulorl.runs.problem_counts import EVALUATIONS, ProblemCounts, write_counts
from ulorl.runs.samples import Decode, write_samples
from ulorl.runs.saved_run import METRICS, complete_lines, read_run, sample_files, step_files
from ulorl.runs.summary import rows, summarize
from ulorl.runs.terminal_lines import HEADER, metrics_line, print_line, print_table
from ulorl.runs.timeline import TIMELINE
from ulorl.runs.tracker import SampleRow, sample_rows
from ulorl.runs.trackers import open_trackers
from ulorl.types import Group, Metrics

if TYPE_CHECKING:
    from ulorl.learner.update_result import Update

_STATUS = (("accuracy", "eval/accuracy", ".1%"), ("reward", "reward/mean", ".3f"), ("entropy", "entropy/mean", ".3f"))


class Position(NamedTuple):
    """How far the logs of a run are written, in bytes."""

    metrics: int  # of metrics.jsonl
    timeline: int  # of timeline.jsonl


def truncate_to(run_dir: Path, step: int, logged: Position | None = None) -> None:
    """Remove what a run wrote after `step`: later lines of metrics.jsonl and timeline.jsonl, an incomplete last line,
    later files of samples and evaluations.

    logged: the position at that step; without it, and where a file is shorter, the lines are read for their steps.
    """
    for name, length in zip((METRICS, TIMELINE), logged or (None, None), strict=True):
        path = run_dir / name
        if path.exists() and length is not None and length <= path.stat().st_size:
            os.truncate(path, length)
        elif path.exists():
            kept = [line for entry, line in complete_lines(path) if entry["step"] <= step]
            atomic_files.write_text(path, "".join(kept))
    for stored, path in [*sample_files(run_dir), *step_files(run_dir / EVALUATIONS)]:
        if stored > step:
            path.unlink()


class RunLog:
    """Records and shows a run. A context manager. Raises UserError when a tracker is missing or does not start; later
    failures of trackers are printed.

        with RunLog(run_dir, config) as log:
            with log.phase("rollout", total=128, tokens=lambda: engine.stats.decode_tokens) as bar:
                bar.advance()
            log.samples(step, groups, decode, update)
            log.timeline(timeline_entry(...))
            log.evaluation(step, counts)
            log.step({"step": step, "version": version, ...})
            log.report(run_dir / "report.html")
        log.summary()

    resume_step: the step of the checkpoint that the run resumes from; what was written after it is removed.
    logged: the value of `position` at that step.
    """

    def __init__(
        self,
        run_dir: Path,
        config: Config,
        resume_step: int | None = None,
        console: Console | None = None,
        logged: Position | None = None,
    ) -> None:
        self.run_dir, self.console = run_dir, console or Console()
        run_dir.mkdir(parents=True, exist_ok=True)
        if resume_step is not None:
            truncate_to(run_dir, resume_step, logged)
        warn = partial(self.print, style="yellow")
        self._trackers = open_trackers(run_dir, config, warn, resume_step)
        self._samples, self._most_samples = list[SampleRow](), config.log.samples  # of the step in progress
        self._metrics = (run_dir / METRICS).open("a", encoding="utf-8")
        self._timeline = (run_dir / TIMELINE).open("a", encoding="utf-8") if config.log.timeline else None
        self._latest: dict[str, float | int] = {}
        self._header_printed = False
        self._bars = ProgressBars(self.console, shown=config.log.progress)
        if logged is not None and self.position.metrics < logged.metrics:
            self.print(f"{run_dir / METRICS} lost lines since the checkpoint was made", style="yellow")
        self._steps = self._bars.add("steps", config.steps)
        self._steps.show(completed=resume_step or 0)

    def __enter__(self) -> Self:
        self._bars.__enter__()
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        with ExitStack() as closing:  # each is closed even when another fails
            if failed:
                closing.enter_context(suppress(OSError))  # a full disk's second error would hide the first
            for tracker in self._trackers:
                closing.callback(tracker.close, failed=bool(failed))
            closing.callback(self._metrics.close)
            if self._timeline:
                closing.callback(self._timeline.close)
            closing.push(self._bars)

    @property
    def position(self) -> Position:
        """Return how far the logs are written."""
        timeline = self.run_dir / TIMELINE
        return Position(
            metrics=os.fstat(self._metrics.fileno()).st_size,
            timeline=timeline.stat().st_size if timeline.exists() else 0,
        )

    def step(self, metrics: Metrics) -> None:
        """Record one step. `step` is among the metrics; 0 is the evaluation before training. A value that is None or
        not finite is stored as null and not sent to the trackers."""
        values = finite_metrics(metrics)
        self._metrics.write(json.dumps(values, allow_nan=False) + "\n")
        self._metrics.flush()
        present = {name: value for name, value in values.items() if value is not None}
        step = int(present.pop("step"))
        for tracker in self._trackers:
            tracker.write(step, present, self._samples)
        self._samples = []
        if not self._header_printed:
            self.print(HEADER, style="bold")
            self._header_printed = True
        self.print(metrics_line(step, present))
        self._latest |= present
        status = [f"{label} {self._latest[name]:{spec}}" for label, name, spec in _STATUS if name in self._latest]
        self._steps.show(completed=step, status="  ".join(status))

    def samples(self, step: int, groups: Sequence[Group], decode: Decode, update: Update) -> None:
        """Store the finished samples of the groups released in this step, as `write_samples` does, with what `update`
        says of them. The trackers get some of them with the metrics of the step."""
        if groups:
            write_samples(self.run_dir, step, groups, decode, update.advantages, update.token_values)
            self._samples = sample_rows(groups, decode, self._most_samples)

    def timeline(self, entry: Mapping[str, Any]) -> None:
        """Record when the samples of a step were decoded, as `timeline_entry` gives it, unless log.timeline is off."""
        if self._timeline:
            self._timeline.write(json.dumps(entry, separators=(",", ":")) + "\n")
            self._timeline.flush()

    def evaluation(self, step: int, counts: ProblemCounts) -> None:
        """Store what the evaluation after `step` steps found for each held-out problem."""
        write_counts(self.run_dir, step, counts)

    def report(self, path: Path) -> None:
        """Give the report to the trackers."""
        for tracker in self._trackers:
            tracker.report(path)

    @contextmanager
    def phase(self, name: str, total: int | None = None, tokens: Callable[[], int] | None = None) -> Iterator[Bar]:
        """Show a progress bar for a part of a step while the block runs: `total` items. tokens: a rising count,
        from which tokens a second are shown."""
        bar = self._bars.add(name, total, tokens)
        try:
            yield bar
        finally:
            bar.remove()

    def print(self, text: str, style: str | None = None) -> None:
        """Print a line above the bars."""
        print_line(self.console, text, style)

    def summary(self, *, model: Path | None = None, report: Path | None = None) -> None:
        """Print the closing table from the run folder; for a resumed run it covers all steps since the first."""
        table_rows = rows(summarize(read_run(self.run_dir)))
        table_rows += [(name, str(path)) for name, path in (("model", model), ("report", report)) if path]
        print_table(self.console, "The run", table_rows)


def finite_metrics(metrics: Mapping[str, Any]) -> Metrics:
    """Return metrics as Python numbers, None for a value that is not finite. Accepts numpy and torch scalars."""
    return {name: _finite(value) for name, value in metrics.items()}


def _finite(value: Any) -> float | int | None:
    if value is None:
        return None
    if isinstance(value, numbers.Integral):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None
