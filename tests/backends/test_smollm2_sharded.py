"""A real pretrained model whose learner two processes share. `make test-engines` makes the model and runs this."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

import ulorl
from paths import ROOT, SMOLLM2
from small_runs import lines

SMALL = [
    "steps=2", f"model.path={SMOLLM2}", "rollout.prompts=2", "rollout.group=2", "rollout.max_tokens=16",
    "rollout.segments=1",
    "objective.dynamic_sampling=false", "eval.problems=1", "eval.samples=1", "optim.microbatch_tokens=128",
    "model.threads=1", "run.checkpoint_every=0", "log.progress=false", "log.report=false",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not (SMOLLM2 / "config.json").exists(), reason=f"no model in {SMOLLM2}; make test-engines gets it")
def test_two_processes_train_smollm2_as_one(tmp_path: Path) -> None:
    recipe = ROOT / "recipes" / "smollm2_arithmetic.toml"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "ulorl", "train"]
    done = subprocess.run(
        [*command, str(recipe), *SMALL, f"run.dir={tmp_path / 'two'}"], capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    alone = ulorl.train(ulorl.load([recipe], [*SMALL, f"run.dir={tmp_path / 'one'}"])).dir
    for one, other in zip(lines(tmp_path / "two")[1:], lines(alone)[1:], strict=True):  # without the evaluation before
        for name in ("rollout/tokens", "train/tokens", "train/samples", "reward/mean"):
            assert one[name] == other[name], name
        for name in ("train/loss", "train/grad_norm", "entropy/mean"):
            assert one[name] == pytest.approx(other[name], rel=1e-3), name
    found = load_file(tmp_path / "two" / "model" / "model.safetensors")
    for name, tensor in load_file(alone / "model" / "model.safetensors").items():
        assert (found[name] - tensor).abs().mean() < 1e-7, name  # a step of AdamW changes most by 1e-5
