"""The run as people see it: metrics.jsonl, TensorBoard, W&B, trackio, stored samples, progress bars, a line a step,
and the closing table. `RunLog` is the only thing the loop talks to; `ulorl.report` reads what it wrote.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import numbers
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, Self

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ulorl.common import atomic_files
from ulorl.common.progress import Bar, ProgressBars
from ulorl.config.training_config import LogConfig
from ulorl.config.tree import Config
from ulorl.errors import UserError
from ulorl.runs.records import METRICS, read_metrics, read_run, sample_files
from ulorl.runs.samples import Decode, write_samples
from ulorl.runs.summary import rows, summarize
from ulorl.types import Group, Metrics


class MetricsWriter(Protocol):
    """Where a step's metrics go. Values are finite numbers; names without a value are left out."""

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None: ...

    def close(self) -> None: ...


class TensorBoardWriter:
    """run_dir/tensorboard. `purge_after`: a resumed run hides what an earlier attempt wrote after that step."""

    def __init__(self, run_dir: Path, purge_after: int | None = None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(run_dir / "tensorboard"))
        if purge_after is not None:
            start = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=time.time(), step=purge_after + 1, session_log=start))

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbWriter:
    """One W&B run for the folder; a resumed run goes on in it. `step` is the x axis of every chart, so that steps
    done again after a resume are taken too. WANDB_MODE=offline needs no key."""

    def __init__(self, run_dir: Path, config: Config) -> None:
        wandb = _tracker("wandb")
        id_file = run_dir / "wandb_id"
        if not id_file.exists():
            atomic_files.write_text(id_file, os.urandom(4).hex())
        try:
            self._run = wandb.init(
                project=config.log.project,
                name=run_dir.resolve().name,
                id=id_file.read_text(encoding="utf-8").strip(),
                resume="allow",
                dir=str(run_dir),
                config=config.model_dump(mode="json"),
            )
        except wandb.Error as error:
            raise UserError(f"log.wandb=true: W&B did not start ({error}); log in or set WANDB_MODE=offline") from error
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
        self._run.log({"step": step, **metrics})

    def close(self) -> None:
        self._run.finish()


class TrackioWriter:
    """One trackio run, named as the folder."""

    def __init__(self, run_dir: Path, config: Config) -> None:
        self._trackio = _tracker("trackio")
        self._trackio.init(
            project=config.log.project,
            name=run_dir.resolve().name,
            config=config.model_dump(mode="json"),
            resume="allow",
        )

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
        self._trackio.log(dict(metrics), step=step)

    def close(self) -> None:
        self._trackio.finish()


def require_trackers(log: LogConfig) -> None:
    """Raise UserError when a tracker is asked for and not installed. Cheap: imports nothing."""
    for name in ("wandb", "trackio"):
        if getattr(log, name) and importlib.util.find_spec(name) is None:
            raise UserError(f'log.{name}=true, but {name} is not installed; pip install "ulorl[{name}]"')


def _tracker(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f'log.{name}=true, but it cannot be imported ({error}); pip install "ulorl[{name}]"') from error


def truncate_to(run_dir: Path, step: int, logged: int | None = None) -> None:
    """Forget what a run wrote after `step`: later lines of metrics.jsonl, a torn last line, later samples files.
    logged: the bytes of metrics.jsonl up to then; without it, the lines are read for their steps."""
    path = run_dir / METRICS
    if path.exists() and logged is not None and logged <= path.stat().st_size:
        os.truncate(path, logged)
    elif path.exists():
        kept = [json.dumps(m, allow_nan=False) + "\n" for m in read_metrics(path) if (m["step"] or 0) <= step]
        atomic_files.write_text(path, "".join(kept))
    for stored, samples in sample_files(run_dir):
        if stored > step:
            samples.unlink()


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
    """One step under HEADER; `-` where a value does not exist."""
    cells = [f"{step:>5}"]
    for _, name, width, spec in _COLUMNS:
        value = metrics.get(name)
        cells.append(f"{'-' if value is None else format(value, spec):>{width}}")
    accuracy, low, high = (metrics.get(f"eval/accuracy{end}") for end in ("", "_low", "_high"))
    held_out = "" if accuracy is None else f"  {accuracy:.1%}"
    return "".join(cells) + held_out + ("" if low is None or high is None else f" ({low:.1%} to {high:.1%})")


class RunLog:
    """The loop's single face to whoever watches. A context manager; `resume_step` is the checkpoint's step, after
    which everything written before is forgotten, and `logged` the `position` then. Raises UserError when a tracker is
    missing.

        with RunLog(run_dir, config) as log:
            with log.phase("rollout", total=128, tokens=lambda: engine.stats.decode_tokens) as phase:
                phase.advance()
            log.samples(step, groups, decode)
            log.step({"step": step, "version": version, ...})
        log.summary()
    """

    def __init__(
        self,
        run_dir: Path,
        config: Config,
        resume_step: int | None = None,
        console: Console | None = None,
        logged: int | None = None,
    ) -> None:
        self.run_dir, self.console = run_dir, console or Console()
        run_dir.mkdir(parents=True, exist_ok=True)
        if resume_step is not None:
            truncate_to(run_dir, resume_step, logged)
        self._writers: list[MetricsWriter] = [TensorBoardWriter(run_dir, resume_step)]
        if config.log.wandb:
            self._writers.append(WandbWriter(run_dir, config))
        if config.log.trackio:
            self._writers.append(TrackioWriter(run_dir, config))
        self._metrics = (run_dir / METRICS).open("a", encoding="utf-8")
        self._latest: dict[str, float | int] = {}
        self._header_printed = False
        self._bars = ProgressBars(self.console, shown=config.log.progress)
        if logged is not None and self.position < logged:
            self.print(f"{run_dir / METRICS} lost lines since the checkpoint was made", style="yellow")
        self._steps = self._bars.add("steps", config.steps)
        self._steps.show(completed=resume_step or 0)

    def __enter__(self) -> Self:
        self._bars.__enter__()
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        with ExitStack() as closing:  # each is closed even when another fails
            if failed:
                closing.enter_context(suppress(OSError))  # of a full disk again: it would hide what stopped the run
            for writer in self._writers:
                closing.callback(writer.close)
            closing.callback(self._metrics.close)
            closing.push(self._bars)

    @property
    def position(self) -> int:
        """Bytes of metrics.jsonl so far."""
        return os.fstat(self._metrics.fileno()).st_size

    def step(self, metrics: Metrics) -> None:
        """Record one step; `step` is among the metrics, and 0 is the evaluation before training. A value that is
        None or not finite is stored as null and not sent to the trackers."""
        values = plain(metrics)
        self._metrics.write(json.dumps(values, allow_nan=False) + "\n")
        self._metrics.flush()
        present = {name: value for name, value in values.items() if value is not None}
        step = int(present.pop("step"))
        for writer in self._writers:
            writer.write(step, present)
        if not self._header_printed:
            self.print(HEADER, style="bold")
            self._header_printed = True
        self.print(metrics_line(step, present))
        self._latest |= present
        self._steps.show(completed=step, status=self._status())

    def samples(self, step: int, groups: Sequence[Group], decode: Decode) -> None:
        """Store the finished samples of the groups released in this step; see `write_samples`."""
        if groups:
            write_samples(self.run_dir, step, groups, decode)

    @contextmanager
    def phase(self, name: str, total: int | None = None, tokens: Callable[[], int] | None = None) -> Iterator[Bar]:
        """A part of a step with a bar of its own: `total` things to do, `tokens` a count that rises meanwhile (an
        engine's, since it was made), from which tokens a second are shown."""
        bar = self._bars.add(name, total, tokens)
        try:
            yield bar
        finally:
            bar.remove()

    def print(self, text: str, style: str | None = None) -> None:
        """A line above the bars, never wrapped or marked up."""
        self.console.print(Text(_encodable(text, self.console)), style=style, soft_wrap=True)

    def summary(self, *, model: Path | None = None, report: Path | None = None) -> None:
        """Print the closing table, from what the run folder holds: a resumed run counts from its beginning."""
        table_rows = rows(summarize(read_run(self.run_dir)))
        table_rows += [(name, str(path)) for name, path in (("model", model), ("report", report)) if path]
        print_table(self.console, "The run", table_rows)

    def _status(self) -> str:
        shown = (
            ("accuracy", "eval/accuracy", ".1%"),
            ("reward", "reward/mean", ".3f"),
            ("entropy", "entropy/mean", ".3f"),
        )
        return "  ".join(f"{label} {self._latest[name]:{spec}}" for label, name, spec in shown if name in self._latest)


def print_table(console: Console, title: str, table_rows: Sequence[tuple[str, str]]) -> None:
    """Label and value a row: a rich table on a terminal, plain aligned lines elsewhere."""
    if console.is_terminal:
        table = Table("", "", title=title, show_header=False, title_justify="left")
        for label, value in table_rows:
            table.add_row(label, Text(value, overflow="fold"))
        console.print(table)
        return
    width = max((len(label) for label, _ in table_rows), default=0)
    for label, value in table_rows:
        console.print(Text(_encodable(f"{label:<{width}}  {value}", console)), soft_wrap=True)


def _encodable(text: str, console: Console) -> str:
    """The text in what the output can carry: a log file in ASCII must not stop a run."""
    plain = text.replace("→", "->")
    try:
        text.encode(console.encoding)
    except UnicodeEncodeError:
        return plain.encode(console.encoding, "replace").decode(console.encoding)
    return text


def plain(metrics: Mapping[str, Any]) -> Metrics:
    """Python numbers, None for what is not finite. Takes numpy and torch scalars."""
    return {name: _plain(value) for name, value in metrics.items()}


def _plain(value: Any) -> float | int | None:
    if value is None:
        return None
    if isinstance(value, numbers.Integral):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None
