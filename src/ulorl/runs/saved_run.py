"""Reads a run folder: config.json, metrics.jsonl, samples/.

What a run may lack (a step, an evaluation, keys that an older version did not write) is no error. What is damaged is
an error that names file and line, except an incomplete last line of metrics.jsonl, which a killed run can leave.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulorl.common.finite_json import FINITE_JSON
from ulorl.common.key_paths import look_up
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.types import Metrics

METRICS = "metrics.jsonl"
SAMPLES = "samples"


@dataclass
class SampleStats:
    """Counts over all stored samples."""

    segments: Counter[int] = field(default_factory=Counter)  # segments of a sample -> samples
    lengths: dict[int, list[int]] = field(default_factory=dict)  # step -> output tokens of each sample

    @property
    def count(self) -> int:
        """Return the number of stored samples."""
        return self.segments.total()

    @property
    def segments_mean(self) -> float | None:
        """Return the mean number of segments of a sample, None without samples."""
        return sum(n * c for n, c in self.segments.items()) / self.count if self.count else None

    @property
    def multi_segment_share(self) -> float | None:
        """Return the share of samples with two segments or more, None without samples."""
        return sum(c for n, c in self.segments.items() if n >= 2) / self.count if self.count else None


@dataclass(frozen=True)
class SavedRun:
    """The content of run folder `dir`: the configuration as plain values, and the metrics of each step, in order."""

    dir: Path
    config: Mapping[str, Any]
    metrics: tuple[Metrics, ...]

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Return the steps at which the metric `key` exists, and its values there."""
        points = [(int(m["step"] or 0), m[key]) for m in self.metrics if m.get(key) is not None]
        return [step for step, _ in points], [float(value) for _, value in points if value is not None]

    def total(self, key: str) -> float:
        """Return the sum of the metric `key` over all steps."""
        return sum(self.series(key)[1])

    def setting(self, key: str) -> Any:
        """Return the value of the configuration at a dotted key, None when there is none."""
        return look_up(self.config, key)

    def sample_files(self) -> list[tuple[int, Path]]:
        """Return (step, file) of every step whose samples are stored, in rising order."""
        return sample_files(self.dir)

    @cached_property
    def stats(self) -> SampleStats:
        """Return counts over all stored samples. They are read once; only their lengths are kept in memory."""
        stats = SampleStats()
        for step, path in self.sample_files():
            for sample in read_samples(path):
                stats.segments[max(1, len(sample.get("segments") or ()))] += 1
                stats.lengths.setdefault(step, []).append(int(sample.get("tokens") or 0))
        return stats


def common_curve(runs: Sequence[SavedRun], key: str) -> tuple[list[int], NDArray[np.float64]]:
    """Return the steps at which every run has the metric `key`, and its values there, [runs, steps]."""
    series = [dict(zip(*run.series(key), strict=True)) for run in runs]
    steps = sorted(set.intersection(*map(set, series)))
    return steps, np.array([[one[step] for step in steps] for one in series]).reshape(len(series), -1)


def read_run(run_dir: Path) -> SavedRun:
    """Read a run folder. Raises UserError when it is not one or a file in it is damaged."""
    config_path = run_dir / "config.json"

    def no_run(message: str) -> UserError:
        return UserError(message, code=ErrorCode.RUN_NOT_FOUND, file=run_dir)

    def damaged(message: str) -> UserError:
        return UserError(message, code=ErrorCode.RUN_DAMAGED, file=config_path)

    if not run_dir.is_dir():
        raise no_run(f"{run_dir}: no such folder; give the folder of a run (run.dir of its recipe)")
    try:
        config = FINITE_JSON.decode(config_path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise no_run(f"{run_dir}: not a run, it has no config.json; give the folder of a run") from None
    except (ValueError, RecursionError) as error:
        raise damaged(f"{config_path}: not valid JSON ({error})") from None
    if not isinstance(config, dict):
        raise damaged(f"{config_path}: expected a JSON object, found {type(config).__name__}")
    if not (config.keys() >= {"run", "rollout"} or (run_dir / METRICS).exists()):  # a model folder has one too
        raise no_run(f"{config_path}: not a run's configuration; give the folder of a run")
    metrics = (m for m in read_metrics(run_dir / METRICS))
    return SavedRun(run_dir, config, tuple(sorted(metrics, key=lambda m: m["step"] or 0)))


def read_metrics(path: Path) -> list[Metrics]:
    """Read the complete lines of a metrics.jsonl; [] when there is no such file. Values that are not finite numbers
    become None. Raises UserError naming the line when one is damaged or has no step."""
    if not path.exists():
        return []
    return [_metrics(entry) for entry, _ in complete_lines(path)]


def read_metric_lines(content: bytes, path: Path, begin: int = 0) -> list[Metrics]:
    """Read the lines of a metrics.jsonl that begin at the byte `begin` or after it, in the order of their steps.

    content: the complete lines of the file. path: what an error names. Raises UserError as `read_metrics` does.
    """
    first = content.count(b"\n", 0, begin) + 1
    lines = content[begin:].decode("utf-8", "replace").split("\n")[:-1]
    entries = [_metrics(_entry(line, path, number)) for number, line in enumerate(lines, first)]
    return sorted(entries, key=lambda one: one["step"] or 0)


def complete_lines(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield each complete line of a file with a line for each step: what it says, and its text. Raises UserError naming
    the line when one is damaged or has no step."""
    with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith("\n"):
                break  # the run was killed while it wrote
            yield _entry(line, path, number), line


def sample_files(run_dir: Path) -> list[tuple[int, Path]]:
    """Return (step, file) of every samples/step_<step>.jsonl of a run, in rising order."""
    return step_files(run_dir / SAMPLES)


def step_files(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, file) of every step_<step>.jsonl in a folder, in rising order."""
    found = []
    for path in folder.glob("step_*.jsonl"):
        digits = path.stem.removeprefix("step_")
        if digits.isdecimal():
            found.append((int(digits), path))
    return sorted(found)


def read_samples(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of one step's file. Raises UserError naming the line when one is damaged."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            yield _object(line, path, number)


def _entry(line: str, path: Path, number: int) -> dict[str, Any]:
    """Return the object of a line of one step."""
    entry = _object(line, path, number)
    if not isinstance(entry.get("step"), int):
        raise _damaged(path, number, f'no whole number under "step", found {entry.get("step")!r}')
    return entry


def _metrics(entry: Mapping[str, Any]) -> Metrics:
    return {key: _number(value) for key, value in entry.items()}


def _object(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        entry = FINITE_JSON.decode(line)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, number, f"not valid JSON ({error}); delete the line") from None
    if not isinstance(entry, dict):
        raise _damaged(path, number, f"expected a JSON object, found {type(entry).__name__}")
    return entry


def _damaged(path: Path, number: int, what: str) -> UserError:
    return UserError(
        f"{path}, line {number}: {what}", code=ErrorCode.RUN_DAMAGED, file=path, record=f"{path.name}:{number}"
    )


def _number(value: Any) -> float | int | None:
    return value if isinstance(value, int | float) else None
