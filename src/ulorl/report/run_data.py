"""What the report shows of one run, as plain values: its head, the metrics of its steps, its timeline and recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ulorl.config.differences import from_defaults
from ulorl.config.loading import load_saved
from ulorl.errors import UserError
from ulorl.report.sample_choice import ReadSamples
from ulorl.report.step_rows import columns, row, shown_rows
from ulorl.report.timeline_data import timeline_data
from ulorl.runs import summary
from ulorl.runs.environment import read_environment
from ulorl.runs.saved_run import SavedRun


def run_data(run: SavedRun, samples: ReadSamples, rows: int, cut: int = 1) -> dict[str, Any]:
    """Return what the page shows of a run, without the samples themselves. rows: how many steps, about, besides those
    whose samples were read. cut: as in `timeline_data`. Raises UserError when timeline.jsonl is damaged."""
    places = shown_rows(run.metrics, rows, samples.lengths.keys())
    steps = [run.metrics[at] for at in places]
    return {
        **head(run),
        "columns": columns(row(one, samples.lengths.get(int(one["step"] or 0), ())) for one in steps),
        "counts": {
            "steps_logged": len(run.metrics),
            "sample_steps": len(run.sample_files()),
            "sample_steps_read": len(samples.lengths),
            "samples_read": samples.count,
        },
        "timeline": timeline_data(run, cut),
        "samples": [],
        "settings": _settings(run),
        "config": run.config,
        "environment": read_environment(run.dir),
    }


def head(run: SavedRun) -> dict[str, Any]:
    """Return the head of a run: one line about it, its accuracies, and its main numbers."""
    numbers = summary.summarize(run)
    return {
        "lead": _lead(run, numbers),
        "evaluations": [
            {"value": one.accuracy, "limits": one.limits, "step": one.step}
            for one in (numbers.before, numbers.after)
            if one
        ],
        "evaluation_size": summary.evaluation_size(numbers),
        "cards": [{"label": label, "value": value, "note": note} for label, value, note in _cards(numbers)],
    }


def short_names(folders: Sequence[Path]) -> list[str]:
    """Return a name for each run folder: its own name, with as many parents as tell the folders apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-length:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _settings(run: SavedRun) -> dict[str, Any]:
    """Return the settings that differ from their defaults, as [key, value, default], and those that charts refer to.
    The list is None for a configuration that this version cannot read."""
    try:
        changed = [list(one) for one in from_defaults(load_saved(run.dir / "config.json"))]
    except UserError:
        changed = None
    targets = {key: run.setting(key) for key in ("objective.mpt.sigma", "objective.mpt.mask")}
    return {"changed": changed, "targets": targets}


def _cards(s: summary.Summary) -> list[tuple[str, str, str]]:
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


def _schedule(run: SavedRun) -> str:
    """Return the rollout schedule in a few words; older runs have segments and no other schedule."""
    kind, segments = run.setting("rollout.schedule.kind") or "segment", run.setting("rollout.segments")
    if kind == "segment":
        return f" in {segments} segment{'s' * (segments != 1)}" if isinstance(segments, int) else ""
    return f", schedule {kind} with factor {run.setting('rollout.schedule.factor')}"


def _lead(run: SavedRun, s: summary.Summary) -> str:
    """Return the run in one line."""
    steps = f"{s.steps} of {s.planned} steps" if s.planned else f"{s.steps} steps"
    parts = [*filter(None, [run.setting("model.path")]), steps]
    if isinstance(limit := run.setting("rollout.max_tokens"), int):
        parts.append(f"outputs of up to {limit:,} tokens{_schedule(run)}")
    importance, mask = run.setting("objective.importance"), run.setting("objective.mpt.mask")
    parts += [str(importance).upper()] if importance else []
    parts += [f"MPT mask {mask}"] if mask else []
    return " · ".join(map(str, parts))
