"""The tiny reasoner, a model of 0.8 million parameters that ships with the package."""

from __future__ import annotations

from pathlib import Path


def model_path() -> Path:
    """Return the transformers folder of the shipped model, which `ulorl tiny make` made with seed 0."""
    return Path(__file__).parent / "model"
