"""The tiny reasoners, models of 0.8 million parameters that ship with the package: one folder for each task."""

from __future__ import annotations

from pathlib import Path


def model_path(task: str = "countdown") -> Path:
    """Return the transformers folder of the model that ships for a task: `countdown` or `maze`.

    countdown: an earlier `ulorl tiny make` made it, as `ulorl tiny make countdown OUT steps=400 schedule=700` would,
    but with `torch.optim.Muon`, whose bfloat16 rounds differently: that command makes as good a model with other
    weights. maze: `ulorl tiny make maze OUT steps=800 batch_tokens=1024 eval_tokens=48` made it; on another processor
    the same command gives other weights. The weights of both are rounded to float16, so that the package stays small.
    """
    return Path(__file__).parent / task
