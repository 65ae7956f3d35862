"""The quickstart's recipe on the device: a few steps, a checkpoint, a resumed run, and the options that need a GPU."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ulorl.bench.gpu.case import Case, Figures, Setting, metered, require
from ulorl.config import shipped_recipes
from ulorl.config.loading import load
from ulorl.training.run import resume, train

SMALL = ("rollout.prompts=4", "rollout.max_tokens=32", "eval.problems=8")
REDUCED = ("engine.dtype=bfloat16", "optim.autocast=bfloat16", "optim.recompute=true", "optim.offload=true")


def cases(setting: Setting) -> list[Case]:
    """Return the cases: the recipe as it is, and with bfloat16, recomputation and offloaded moments."""
    return [
        Case("the recipe, 4 steps, resumed for 2 more", partial(_run, setting, ())),
        Case("the recipe in bfloat16, recomputed, offloaded", partial(_run, setting, REDUCED)),
    ]


def _run(setting: Setting, options: Sequence[str]) -> Figures:
    """Train, resume from the checkpoint with more steps, and look at the metrics of every step.

    The run itself stops with an error when the log-probs of engine and learner differ after new weights are loaded.
    """
    steps, more = (2, 3) if setting.small else (4, 6)
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            f"steps={steps}", f"run.dir={folder}/run", "run.checkpoint_every=2", f"model.device={setting.device}",
            "log.progress=false", "eval.problems=200", *(SMALL if setting.small else ()), *options,
        ]  # fmt: skip
        with metered(setting) as meter:
            train(load([shipped_recipes.named("quickstart")], overrides))
            result = resume(Path(folder) / "run", [f"steps={more}"])
        metrics = [line for line in result.metrics if line["step"]]
        held_out = [found.accuracy for found in (result.before, result.after) if found]
    probes = [found for line in metrics if (found := line.get("mismatch/probe_mean")) is not None]
    figures: Figures = {
        "steps": len(metrics),
        "seconds": meter.seconds,
        "peak_bytes": meter.peak_bytes,
        "step_seconds": [line.get("time/step") for line in metrics],
        "reward": [line.get("reward/mean") for line in metrics],
        "mismatch_mean": [line.get("mismatch/mean") for line in metrics],
        "probe_mean_max": max(probes, default=None),
        "held_out": held_out,
    }
    require([line["step"] for line in metrics] == list(range(1, more + 1)), "steps are missing", figures)
    require(bool(probes), "the weights of the engine were never compared with the learner's", figures)
    return figures
