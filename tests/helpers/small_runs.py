"""Runs of a few steps with the shipped tiny model, and what they leave behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import ulorl
from paths import COUNTDOWN
from ulorl.training import checkpoint

RECIPE = COUNTDOWN
SMALL = [
    "steps=4", "rollout.prompts=8", "rollout.group=2", "rollout.max_tokens=96", "rollout.segments=3", "data.size=40",
    "eval.problems=6", "eval.samples=2", "eval.every=2", "run.checkpoint_every=2", "model.threads=1",
    "log.report=false",  # of which 19 figures take longer than the four steps
]  # fmt: skip
CLOCK = ("time/", "checkpoint/", "rollout/tokens_per_second")  # what differs between equal runs


def config(run_dir: Path, *overrides: str) -> ulorl.Config:
    return ulorl.load([RECIPE], [*SMALL, f"run.dir={run_dir}", *overrides])


def lines(run_dir: Path) -> list[dict[str, object]]:
    """metrics.jsonl without the clock, and without what depends on where a run was stopped."""
    metrics = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in m.items() if not k.startswith(CLOCK)} for m in metrics]


def timeline(run_dir: Path) -> str:
    return (run_dir / "timeline.jsonl").read_text()


def samples(run_dir: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((run_dir / "samples").glob("*.jsonl"))}


def evaluations(run_dir: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((run_dir / "evaluations").glob("*.jsonl"))}


def killed_copy(run_dir: Path, target: Path, step: int) -> Path:
    """Copy a finished run as a kill would have left it before the checkpoint after `step`: its logs are ahead."""
    shutil.copytree(run_dir, target)
    (target / "finished.json").unlink()
    shutil.rmtree(target / "model")
    for folder in (target / "checkpoints").iterdir():
        if checkpoint.step_of(folder) > step:
            shutil.rmtree(folder)
    assert checkpoint.step_of(checkpoint.latest(target)) == step
    return target
