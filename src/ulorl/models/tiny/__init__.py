"""The tiny reasoner, a model of 0.8 million parameters that ships with the package."""

from __future__ import annotations

from pathlib import Path


def model_path() -> Path:
    """Return the transformers folder of the shipped model.

    An earlier `ulorl tiny make` made it, as `ulorl tiny make countdown OUT steps=400 schedule=700` would, but with
    `torch.optim.Muon`, whose bfloat16 rounds differently: that command makes as good a model with other weights.
    """
    return Path(__file__).parent / "model"
