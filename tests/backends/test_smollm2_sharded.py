"""A real pretrained model whose learner two processes share. `make test-engines` makes the model and runs this.

The run uses the first 6 of its 30 layers, because the others are the same code and would take minutes. So cut, the
model answers nothing: every eighth token of its vocabulary ends an output, and a reward that is 1 for every other
length makes advantages that are not 0.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import ulorl
from paths import ROOT, SMOLLM2
from small_runs import lines

SMALL = [
    "steps=2", "rollout.prompts=2", "rollout.group=4", "rollout.max_tokens=32", "rollout.segments=1",
    "reward.kind=function", "reward.function=parity:odd", "objective.dynamic_sampling=false", "objective.mpt.mask=off",
    "eval.problems=1", "eval.samples=1", "optim.microbatch_tokens=128", "optim.warmup_steps=0", "model.threads=1",
    "run.checkpoint_every=0", "log.progress=false", "log.report=false",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not (SMOLLM2 / "config.json").exists(), reason=f"no model in {SMOLLM2}; make test-engines gets it")
def test_two_processes_train_smollm2_as_one(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(SMOLLM2, num_hidden_layers=6)
    model.generation_config.eos_token_id = list(range(0, model.config.vocab_size, 8))
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(SMOLLM2).save_pretrained(tmp_path / "model")
    (tmp_path / "parity.py").write_text("def odd(problem, output):\n    return len(output) % 2\n")
    recipe, small = ROOT / "recipes" / "smollm2_arithmetic.toml", [*SMALL, f"model.path={tmp_path / 'model'}"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "ulorl", "train"]
    done = subprocess.run(
        [*command, str(recipe), *small, f"run.dir={tmp_path / 'two'}"], capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    alone = ulorl.train(ulorl.load([recipe], [*small, f"run.dir={tmp_path / 'one'}"])).dir
    assert all(one["train/grad_norm"] > 0 for one in lines(alone)[1:])
    for one, other in zip(lines(tmp_path / "two")[1:], lines(alone)[1:], strict=True):  # without the evaluation before
        for name in ("rollout/tokens", "train/tokens", "train/samples", "reward/mean"):
            assert one[name] == other[name], name
        for name in ("train/loss", "train/grad_norm", "entropy/mean"):
            assert one[name] == pytest.approx(other[name], rel=1e-3), name
    before, after, found = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "model", alone / "model", tmp_path / "two/model")
    )
    for name, tensor in after.items():
        assert (tensor != before[name]).any(), name
        assert (found[name] - tensor).abs().mean() < 1e-7, name  # a step of AdamW changes most by 1e-5
