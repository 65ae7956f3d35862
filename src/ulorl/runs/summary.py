"""The main numbers of a run, for the closing table on the terminal and the head of report.html."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ulorl.common.intervals import Interval, difference
from ulorl.runs.saved_run import SavedRun


@dataclass(frozen=True)
class HeldOutAccuracy:
    """The accuracy of a run on its held-out problems after `step` steps, as its folder has it."""

    step: int
    accuracy: float  # avg@k, in [0, 1]
    interval: Interval | None  # of 95% over problems; None in runs that did not store it

    @property
    def limits(self) -> str:
        """Return the 95% interval as text, "" without one."""
        return f"{self.interval.low:.1%} to {self.interval.high:.1%}" if self.interval else ""

    def __str__(self) -> str:
        return f"{self.accuracy:.1%} ({self.limits})" if self.interval else f"{self.accuracy:.1%}"


@dataclass(frozen=True)
class Change:
    """A metric's mean over the first and over the last `window` steps that have it."""

    first: float
    last: float
    window: int

    def __str__(self) -> str:
        return f"{self.first:.3f} → {self.last:.3f}"


@dataclass(frozen=True)
class Summary:
    """The main numbers of a run; None for a number that it does not have, or not yet."""

    steps: int  # done
    planned: int | None
    before: HeldOutAccuracy | None  # the first evaluation
    after: HeldOutAccuracy | None  # the last one, when there were two
    problems: int | None  # of the last evaluation
    runs: int | None  # a problem
    reward: Change | None
    entropy: Change | None
    tokens_per_second: float | None  # decoded, while rolling out
    segments_mean: float | None
    multi_segment_share: float | None
    truncated_share: float | None  # of finished samples
    seconds: float  # all steps and evaluations

    @property
    def gain(self) -> float | None:
        """Return the gain in accuracy from the first to the last evaluation, in points."""
        return 100 * (self.after.accuracy - self.before.accuracy) if self.before and self.after else None

    @property
    def gain_limits(self) -> str:
        """Return the 95% interval of the gain as text, in points; "" without one. The two evaluations are taken as
        independent, which is conservative: they share their problems."""
        if not (self.before and self.before.interval and self.after and self.after.interval):
            return ""
        gain = difference(self.after.interval, self.before.interval)
        return f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f}"


def summarize(record: SavedRun) -> Summary:
    """Compute the main numbers of a run, finished or not."""
    evaluations = accuracies(record)
    finished, rollout_seconds = record.total("rollout/finished"), record.total("time/rollout")
    planned = record.setting("steps")
    return Summary(
        steps=max((int(m["step"] or 0) for m in record.metrics), default=0),
        planned=planned if isinstance(planned, int) else None,
        before=evaluations[0] if evaluations else None,
        after=evaluations[-1] if len(evaluations) > 1 else None,
        problems=_latest(record, "eval/problems", "eval.problems"),
        runs=_latest(record, "eval/samples", "eval.samples"),
        reward=_change(record.series("reward/mean")[1]),
        entropy=_change(record.series("entropy/mean")[1]),
        tokens_per_second=record.total("rollout/tokens") / rollout_seconds if rollout_seconds else None,
        segments_mean=_per_finished(record, "rollout/segments_mean", lambda: record.stats.segments_mean),
        multi_segment_share=_per_finished(
            record, "rollout/multi_segment_fraction", lambda: record.stats.multi_segment_share
        ),
        truncated_share=record.total("rollout/truncated") / finished if finished else None,
        seconds=sum(record.series("time/step")[1]) + record.total("time/eval"),
    )


def accuracies(record: SavedRun) -> list[HeldOutAccuracy]:
    """Return every evaluation of the run with a scored answer, by step."""
    lows, highs = (dict(zip(*record.series(f"eval/accuracy_{end}"), strict=True)) for end in ("low", "high"))
    return [
        HeldOutAccuracy(
            step, value, Interval(value, lows[step], highs[step]) if step in lows and step in highs else None
        )
        for step, value in zip(*record.series("eval/accuracy"), strict=True)
    ]


def rows(summary: Summary) -> list[tuple[str, str]]:
    """Return (label, value) of each row of the closing table; numbers that do not exist are left out."""
    s = summary
    table: list[tuple[str, str | None]] = []
    for name, accuracy in ((" before" if s.after else "", s.before), (" after", s.after)):
        if accuracy:
            table.append((f"held-out accuracy{name}", f"{accuracy}, step {accuracy.step}, {evaluation_size(s)}"))
    if s.gain is not None:
        limits = f" ({s.gain_limits})" if s.gain_limits else ""
        table.append(("gain", f"{s.gain:+.1f}{limits} points"))
    for name, change in (("mean reward", s.reward), ("entropy, nats a token", s.entropy)):
        table.append((name, f"{change} ({span(change)})" if change else None))
    table += [
        ("decoded tokens a second", _number(s.tokens_per_second, ",.0f")),
        ("segments a sample", _number(s.segments_mean, ".2f")),
        ("samples in 2 or more segments", _number(s.multi_segment_share, ".1%")),
        ("truncated samples", _number(s.truncated_share, ".1%")),
        ("time", f"{duration(s.seconds)} ({s.steps} steps)"),
    ]
    return [(label, value) for label, value in table if value]


def evaluation_size(summary: Summary) -> str:
    """Return the size of the evaluation as text, such as `500 problems x 4`."""
    problems = f"{summary.problems:,} problems" if summary.problems else "problems unknown"
    return f"{problems} x {summary.runs}" if summary.runs else problems


def span(change: Change) -> str:
    """Return what the two means of a change cover, as text."""
    return f"mean of first and last {change.window} steps" if change.window > 1 else "first and last step"


def duration(seconds: float) -> str:
    """Return a time as text: `3 h 05 min`, `5 min 09 s` or `8.2 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _change(values: Sequence[float]) -> Change | None:
    """Return the change between the means of a tenth of the steps at either end, at most 10."""
    if not values:
        return None
    window = min(10, max(1, len(values) // 10))
    return Change(math.fsum(values[:window]) / window, math.fsum(values[-window:]) / window, window)


def _per_finished(record: SavedRun, key: str, stored: Callable[[], float | None]) -> float | None:
    """Return a metric that is a mean over finished samples as the mean over those of the whole run. When the run did
    not log it: `stored()`, which reads all stored samples."""
    counts = dict(zip(*record.series("rollout/finished"), strict=True))
    pairs = [(value, counts.get(step, 0.0)) for step, value in zip(*record.series(key), strict=True)]
    total = sum(count for _, count in pairs)
    return sum(value * count for value, count in pairs) / total if total else stored()


def _latest(record: SavedRun, metric: str, setting: str) -> int | None:
    """Return a count that the evaluation logged, else that of the configuration."""
    values = record.series(metric)[1]
    value = values[-1] if values else record.setting(setting)
    return int(value) if isinstance(value, int | float) else None


def _number(value: float | None, spec: str) -> str | None:
    return None if value is None else format(value, spec)
