"""A seeded run with the numbers it gave when it was recorded: a refactoring reproduces them.

Counts are exact. Means are compared to 1e-4, because another processor's matrix kernels round differently; on one
machine a run is the same bit for bit (tests/training/test_run.py). `python tests/training/test_golden_run.py` records
new numbers, which a commit does only with the reason why behaviour changed.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pytest

import ulorl
from paths import ROOT

GOLDEN = ROOT / "tests" / "golden" / "run.json"
OVERRIDES = [
    "steps=10", "rollout.prompts=3", "rollout.group=4", "rollout.max_tokens=120", "rollout.segments=4", "data.size=60",
    "optim.minibatches=2", "optim.microbatch_tokens=600", "eval.problems=10", "eval.samples=2", "eval.every=5",
    "run.checkpoint_every=0", "model.threads=1", "objective.mpt.sigma=0.45",
]  # fmt: skip
EXACT = [
    "version", "rollout/tokens", "rollout/finished", "rollout/carried", "rollout/waiting", "rollout/truncated",
    "train/groups", "train/samples", "train/tokens", "train/groups_dropped", "train/updates",
]  # fmt: skip
CLOSE = [
    "reward/mean", "entropy/mean", "mpt/fraction", "mpt/masked_fraction", "importance/ratio_mean",
    "importance/clip_fraction", "rollout/segments_mean", "rollout/staleness_mean", "train/loss", "train/grad_norm",
    "eval/accuracy", "eval/length_mean",
]  # fmt: skip


def record(run_dir: Path) -> list[dict[str, float | int | None]]:
    config = ulorl.load([ROOT / "recipes" / "countdown.toml"], [*OVERRIDES, f"run.dir={run_dir}"])
    metrics = ulorl.train(config).metrics
    return [{name: m[name] for name in ("step", *EXACT, *CLOSE) if name in m} for m in metrics]


def test_a_seeded_run_gives_the_recorded_numbers(tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())
    found = record(tmp_path / "run")
    assert len(golden) == len(found) == 11
    trained = [m for m in golden if m.get("train/samples")]
    assert len(trained) >= 5  # the run is worth recording: it trains, carries, and masks
    assert any(m["mpt/masked_fraction"] for m in trained)
    assert any(m["rollout/staleness_mean"] for m in trained)
    for expected, metrics in zip(golden, found, strict=True):
        assert expected.keys() == metrics.keys()
        for name in EXACT:
            assert metrics.get(name) == expected.get(name), (expected["step"], name)
        for name in CLOSE:
            if expected.get(name) is None:
                assert metrics.get(name) is None, (expected["step"], name)
            else:
                assert metrics[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), (expected["step"], name)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        numbers = record(Path(folder) / "run")
    GOLDEN.write_text(json.dumps(numbers, indent=1) + "\n")
    print(f"{GOLDEN}: {len(numbers)} lines", file=sys.stderr)
