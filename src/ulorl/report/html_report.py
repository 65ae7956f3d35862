"""Writes report.html: one page with the figures and some outputs of a run, which loads nothing from the network.

The same run folder gives the same bytes. Outputs and configuration are untrusted text: the template escapes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ulorl.common import atomic_files
from ulorl.report import figures
from ulorl.report.drawing import Figure
from ulorl.report.timeline_figure import timeline_figure
from ulorl.runs import saved_run, summary
from ulorl.types import Metrics

REPORT = "report.html"
_HUES = 6  # colours of versions; version v has colour v mod 6
_CLIP = 6000  # characters of one output that are shown
_TABLE = (  # columns of the table of all steps: title, metric, format
    ("reward", "reward/mean", ".3f"),
    ("entropy", "entropy/mean", ".3f"),
    ("held-out", "eval/accuracy", ".1%"),
    ("MPT", "mpt/fraction", ".1%"),
    ("masked", "mpt/masked_fraction", ".1%"),
    ("ratio", "importance/ratio_mean", ".4f"),
    ("clipped", "importance/clip_fraction", ".2%"),
    ("mismatch", "mismatch/mean", ".1e"),
    ("finished", "rollout/finished", ".0f"),
    ("carried", "rollout/carried", ".0f"),
    ("truncated", "rollout/truncated", ".0f"),
    ("segments", "rollout/segments_mean", ".2f"),
    ("age", "rollout/staleness_mean", ".2f"),
    ("occupied", "engine/occupancy", ".0%"),
    ("tokens", "rollout/tokens", ",.0f"),
    ("seconds", "time/step", ".1f"),
)


@dataclass(frozen=True)
class Piece:
    """Text that one version wrote without a pause. `left_out`: characters cut from its middle, between `text` and
    `tail`."""

    version: int | None
    tokens: int
    text: str
    left_out: int = 0
    tail: str = ""

    @property
    def hue(self) -> int | None:
        """Return the number of the colour of the version."""
        return None if self.version is None else self.version % _HUES


@dataclass(frozen=True)
class Example:
    """One stored output as it is shown."""

    title: str
    verdict: str  # right, wrong, truncated or unscored
    prompt: str
    tokens: int
    segments: int
    pieces: tuple[Piece, ...]


def write_report(run_dir: Path) -> Path:
    """Write run_dir/report.html for a run, finished or not, and return its path. Raises UserError when `run_dir` is not
    a run or a file in it is damaged."""
    run_dir = Path(run_dir)
    run = saved_run.read_run(run_dir)
    path = run_dir / REPORT
    atomic_files.write_text(path, render(run))
    return path


def render(run: saved_run.SavedRun) -> str:
    """Return the page as text."""
    environment = Environment(
        loader=PackageLoader("ulorl", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    numbers = summary.summarize(run)
    return environment.get_template("template.html").render(
        name=run.dir.resolve().name,
        s=numbers,
        cards=cards(numbers),
        lead=_lead(run, numbers),
        evaluation_size=summary.evaluation_size(numbers),
        figures=[_marked(figure) for figure in figures.figures(run)],
        timeline=_marked(timeline_figure(run)),
        examples=examples(run),
        table_head=["step", *(title for title, _, _ in _TABLE)],
        table=[_table_row(metrics) for metrics in run.metrics],
        config=json.dumps(run.config, indent=2, ensure_ascii=False),
    )


def _marked(figure: Figure | None) -> tuple[Figure, Markup] | None:
    return (figure, Markup(figure.svg)) if figure else None


def cards(s: summary.Summary) -> list[tuple[str, str, str]]:
    """Return (label, number, explanation) of each card at the head of the page."""
    shown: list[tuple[str, str, str]] = []
    if s.gain is not None:
        limits = f"{s.gain_limits}, 95% interval" if s.gain_limits else ""
        shown.append(("Gain", f"{s.gain:+.1f} points", limits))
    for label, change in (("Mean reward", s.reward), ("Entropy, nats a token", s.entropy)):
        if change:
            shown.append((label, str(change), summary.span(change)))
    if s.segments_mean is not None and s.multi_segment_share is not None:
        shown.append(("Segments a sample", f"{s.segments_mean:.2f}", f"{s.multi_segment_share:.1%} span 2 or more"))
    if s.truncated_share is not None:
        shown.append(("Truncated", f"{s.truncated_share:.1%}", "of finished samples"))
    if s.tokens_per_second is not None:
        shown.append(("Tokens a second", f"{s.tokens_per_second:,.0f}", "decoded while rolling out"))
    if s.seconds:
        planned = f" of {s.planned}" if s.planned and s.planned != s.steps else ""
        shown.append(("Time", summary.duration(s.seconds), f"{s.steps}{planned} steps"))
    return shown


def examples(run: saved_run.SavedRun) -> list[Example]:
    """Return right and wrong outputs of the first and of the last stored step, each the one with the most segments."""
    files = run.sample_files()
    chosen = files[:1] + files[1:][-1:]
    shown = []
    for step, path in chosen:
        for right in (True, False):
            alike = (sample for sample in saved_run.read_samples(path) if _is_right(sample) is right)
            best = max(alike, key=_segment_count, default=None)
            if best is not None:
                shown.append(_example(step, best))
    return shown


def _is_right(sample: Mapping[str, Any]) -> bool:
    return (sample.get("reward") or 0) > 0


def _segment_count(sample: Mapping[str, Any]) -> int:
    return len(sample.get("segments") or ())


def _example(step: int, sample: Mapping[str, Any]) -> Example:
    right, truncated = _is_right(sample), sample.get("status") == "truncated"
    return Example(
        title=f"Step {step}, sample {sample.get('sample', '?')}",
        verdict="right" if right else "unscored" if "error" in sample else "truncated" if truncated else "wrong",
        prompt=str(sample.get("prompt") or ""),
        tokens=int(sample.get("tokens") or 0),
        segments=_segment_count(sample),
        pieces=tuple(_pieces(str(sample.get("output") or ""), sample.get("segments") or [])),
    )


def _pieces(output: str, segments: Sequence[Mapping[str, Any]]) -> Iterable[Piece]:
    """Yield the output cut where a segment begins, or in one piece when the characters of segments were not stored."""
    if not segments or any("chars" not in segment for segment in segments):
        segments = [{"version": None, "tokens": 0, "chars": len(output)}]
    most, position = max(300, _CLIP // len(segments)), 0
    for segment in segments:
        text = output[position : position + segment["chars"]]
        position += segment["chars"]
        if len(text) > most:
            head, tail = text[: most // 2], text[-(most // 2) :]
            yield Piece(segment["version"], segment["tokens"], head, len(text) - len(head) - len(tail), tail)
        else:
            yield Piece(segment["version"], segment["tokens"], text)


def _table_row(metrics: Metrics) -> list[str]:
    values = [(metrics.get(name), spec) for _, name, spec in _TABLE]
    return [str(metrics["step"]), *("–" if value is None else format(value, spec) for value, spec in values)]


def _schedule(run: saved_run.SavedRun) -> str:
    """Return the rollout schedule in a few words; older runs have segments and no other schedule."""
    kind, segments = run.setting("rollout.schedule.kind") or "segment", run.setting("rollout.segments")
    if kind == "segment":
        return f" in {segments} segment{'s' * (segments != 1)}" if isinstance(segments, int) else ""
    return f", schedule {kind} with factor {run.setting('rollout.schedule.factor')}"


def _lead(run: saved_run.SavedRun, s: summary.Summary) -> str:
    """Return the run in one line."""
    steps = f"{s.steps} of {s.planned} steps" if s.planned else f"{s.steps} steps"
    parts = [*filter(None, [run.setting("model.path")]), steps]
    if isinstance(limit := run.setting("rollout.max_tokens"), int):
        parts.append(f"outputs of up to {limit:,} tokens{_schedule(run)}")
    importance, mask = run.setting("objective.importance"), run.setting("objective.mpt.mask")
    parts += [str(importance).upper()] if importance else []
    parts += [f"MPT mask {mask}"] if mask else []
    return " · ".join(parts)
