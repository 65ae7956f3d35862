"""Whole runs with vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest

from paths import ROOT, SMOLLM2
from small_runs import killed_copy, lines
from ulorl.training import run

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-engines` runs these")

from vllm_engines import agree_after_every_update, train


def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path: Path) -> None:
    small = [
        "rollout.prompts=8", "rollout.group=2", "rollout.max_tokens=96", "rollout.segments=3", "data.size=40",
        "eval.problems=4", "run.checkpoint_every=2",
    ]  # fmt: skip
    train(tmp_path / "straight", "steps=4", *small)
    resumed = run.resume(killed_copy(tmp_path / "straight", tmp_path / "killed", step=2))
    assert lines(resumed.dir) == lines(tmp_path / "straight")


@pytest.mark.slow
@pytest.mark.skipif(not (SMOLLM2 / "config.json").exists(), reason=f"no model in {SMOLLM2}; make test-engines gets it")
def test_smollm2_trains(tmp_path: Path) -> None:
    """A real pretrained model for two steps, 49,152 tokens of vocabulary, tied head."""
    metrics = train(
        tmp_path / "run", "steps=2", f"model.path={SMOLLM2}", "rollout.prompts=4", "rollout.group=2", "eval.problems=1",
        "eval.samples=1", "rollout.max_tokens=32", "run.checkpoint_every=0", "objective.dynamic_sampling=false",
        recipe=ROOT / "recipes" / "smollm2_arithmetic.toml",
    )  # fmt: skip
    agree_after_every_update(metrics, updates=1)
    assert metrics[-1]["rollout/multi_segment_fraction"] > 0
    assert all(0 <= m["reward/mean"] <= 1 and m["rollout/tokens"] > 50 for m in metrics[1:])
