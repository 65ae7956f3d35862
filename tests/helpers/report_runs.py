"""Small run folders for the tests of the report, and the data of a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ulorl.config.loading import build

DATA = {"kind": "countdown", "size": 8}
METRICS: list[dict[str, Any]] = [
    {
        "step": 0, "version": 0, "eval/accuracy": 0.30, "eval/accuracy_low": 0.257, "eval/accuracy_high": 0.347,
        "eval/problems": 400, "eval/samples": 1,
    },
    {
        "step": 1, "version": 0, "reward/mean": 0.2, "entropy/mean": None, "rollout/tokens": 1000,
        "rollout/finished": 10, "rollout/carried": 6, "rollout/truncated": 0, "rollout/segments_mean": 1.0,
        "rollout/multi_segment_fraction": 0.0, "time/rollout": 4.0, "time/update": 1.0, "time/step": 5.5,
    },
    {
        "step": 2, "version": 1, "reward/mean": 0.6, "entropy/mean": 0.35, "mpt/fraction": 0.1,
        "mpt/masked_fraction": 0.05, "importance/ratio_mean": 1.0, "importance/clip_fraction": 0.0,
        "rollout/tokens": 2000, "rollout/finished": 30, "rollout/carried": 8, "rollout/truncated": 2,
        "rollout/segments_mean": 1.4, "rollout/multi_segment_fraction": 0.4, "train/grad_norm": 0.7,
        "time/rollout": 6.0, "time/update": 2.0, "time/step": 8.0, "time/eval": 50.0, "time/engine_idle": 1.5,
        "eval/accuracy": 0.42, "eval/accuracy_low": 0.373, "eval/accuracy_high": 0.469, "eval/problems": 400,
        "eval/samples": 1, "eval/length_mean": 120,
    },
]  # fmt: skip
TIMELINE = [
    {"step": 1, "version": 0, "unit": "decode steps", "length": 4, "sample": [0, 1], "start": [0, 0],
     "end": [4, 4], "tokens": [4, 4], "status": "cu"},
    {"step": 2, "version": 1, "unit": "decode steps", "length": 2, "sample": [1], "start": [0], "end": [2],
     "tokens": [2], "status": "t"},
]  # fmt: skip
OF_TWO_ENGINES = [  # engine 0 decodes two samples for two seconds, then one; engine 1 none for a second
    {"step": 1, "version": 0, "unit": "milliseconds", "length": 4000, "sample": [0, 1, 2], "start": [0, 0, 1000],
     "end": [4000, 2000, 4000], "tokens": [4, 2, 3], "engine": [0, 0, 1], "status": "ccu"},
]  # fmt: skip


def sample(
    number: int, output: str, reward: float, chars: list[int], versions: list[int], **more: Any
) -> dict[str, Any]:
    segments = [{"version": v, "tokens": c, "chars": c} for v, c in zip(versions, chars, strict=True)]
    return {
        "sample": number, "group": 0, "problem": "p", "prompt": "2+2=", "output": output, "reward": reward,
        "status": "complete", "tokens": sum(chars), "segments": segments,
    } | more  # fmt: skip


def make_run(
    run_dir: Path,
    metrics: list[dict[str, Any]] = METRICS,
    samples: dict[int, list[dict[str, Any]]] | None = None,
    settings: dict[str, Any] | None = None,
) -> Path:
    run_dir.mkdir(parents=True, exist_ok=True)
    cfg = build({"steps": 2, "data": DATA} | (settings or {}))
    (run_dir / "config.json").write_text(cfg.model_dump_json())
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in metrics))
    for step, entries in (samples or {}).items():
        (run_dir / "samples").mkdir(exist_ok=True)
        path = run_dir / "samples" / f"step_{step:06d}.jsonl"
        path.write_text("".join(json.dumps(e) + "\n" for e in entries))
    return run_dir


def add_timeline(run_dir: Path, lines: list[dict[str, Any]] = TIMELINE) -> None:
    (run_dir / "timeline.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


OVERFLOWING = [  # samples of a step as text: JSON that Python reads as infinities and NaN
    """{"sample": 0, "prompt": "p", "output": "abc", "reward": 1e999, "advantage": -1e999, "tokens": 3, "group": 0,
    "segments": [{"version": 0, "tokens": 2, "chars": 2}, {"version": 1e999, "tokens": 1, "chars": 1}],
    "token_values": {"chars": [1, 1, 1], "logprob": [-0.5, -1e999, NaN], "entropy": [1e999, 0.25, 1e308]}}""",
    """{"sample": 1e999, "prompt": "p", "output": "abc", "reward": NaN, "tokens": 1e999, "segments":
    [{"version": 0, "tokens": 1e999, "chars": 1}, {"version": 1, "tokens": 2, "chars": 1e999}]}""",
    """{"sample": 2, "prompt": "p", "output": "ab", "reward": 1.0, "tokens": 2, "segments":
    [{"version": 0, "tokens": 2, "chars": 2}], "token_values": {"chars": [1, 1e999], "logprob": [0, 0]}}""",
]  # fmt: skip


def add_overflowing(run_dir: Path, step: int) -> None:
    """Write samples of a step and metrics with numbers that no float can express, and with the largest that one can."""
    (run_dir / "samples").mkdir(exist_ok=True)
    lines = "".join(text.replace("\n", " ") + "\n" for text in OVERFLOWING)
    (run_dir / "samples" / f"step_{step:06d}.jsonl").write_text(lines)
    with (run_dir / "metrics.jsonl").open("a") as file:
        for at, (low, high) in enumerate([("-1.7976931348623157e308", "1e308"), ("1e999", "-1e308")]):
            file.write(
                f'{{"step": {step + at}, "reward/mean": {low}, "entropy/mean": {high}, "train/grad_norm": 1e999,'
                f' "time/rollout": 1e-300, "time/engine_idle": 1e300, "rollout/tokens": 1{"0" * 400}}}\n'
            )


def data_of(page: str) -> dict[str, Any]:
    """Return the data that a page shows."""
    return dict(json.loads(page.partition('id="data">')[2].partition("</script>")[0]))
