"""The tiny reasoner: a task, a tokenizer, a model of 0.8 million parameters that ships with the package."""

from __future__ import annotations

from pathlib import Path


def model_path() -> Path:
    """The transformers folder of the shipped model, as `ulorl tiny make` made it with seed 0."""
    return Path(__file__).parent / "model"
