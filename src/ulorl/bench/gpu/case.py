"""A case: one thing that a check looks at, with its figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

Figures = dict[str, Any]  # what JSON can hold


class CheckError(Exception):
    """A result that is wrong. `figures` are those measured up to then."""

    def __init__(self, problem: str, figures: Figures | None = None) -> None:
        super().__init__(problem)
        self.figures = figures or {}


class NotPossibleError(Exception):
    """This machine cannot run the case: a package or a second GPU is missing."""


@dataclass(frozen=True)
class Setting:
    """Where the checks run. device: "cuda" or "cpu"; small: sizes for a test of the checks themselves."""

    device: str
    small: bool

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device != "cpu"


@dataclass(frozen=True)
class Case:
    """A name that is unique in its check, and the function that runs the case and returns its figures.

    The function raises CheckError for a wrong result and NotPossibleError where the machine cannot run it.
    """

    name: str
    run: Callable[[], Figures]


@dataclass
class Meter:
    """Seconds and peak memory of a block. peak_bytes: allocated by torch on the GPU in all, None on a CPU."""

    seconds: float = 0.0
    peak_bytes: int | None = None


@contextmanager
def metered(setting: Setting) -> Iterator[Meter]:
    """Measure a block; the figures are there when it ends, also after an error."""
    meter = Meter()
    if setting.on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    try:
        yield meter
    finally:
        if setting.on_gpu:
            meter.peak_bytes = torch.cuda.max_memory_allocated()
            torch.cuda.synchronize()
        meter.seconds = round(time.perf_counter() - started, 7)


def require(condition: bool, problem: str, figures: Figures) -> None:
    """Raise CheckError with `problem` and `figures` unless the condition holds."""
    if not condition:
        raise CheckError(problem, figures)
