"""Sends a run to Weights & Biases (extra wandb)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ulorl.config.tree import Config
from ulorl.runs.tracker import SampleRow, run_name


class Wandb:
    """One W&B run for the folder, which a resumed run continues. `step` is the x axis of every chart.

    id: the run to continue, "" for a new one. WANDB_MODE=offline needs no key and no network.
    """

    def __init__(self, run_dir: Path, config: Config, id: str) -> None:
        import wandb

        self._table: Any = wandb.Table
        self.id = id or os.urandom(4).hex()
        self._run = wandb.init(
            project=config.log.project, name=run_name(run_dir), id=self.id, resume="allow", dir=str(run_dir)
        )
        self._run.config.update(config.model_dump(mode="json"), allow_val_change=True)
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, metrics: Mapping[str, float | int], samples: Sequence[SampleRow]) -> None:
        """Log one step."""
        table = {}
        if samples:
            table["samples"] = self._table(columns=list(SampleRow._fields), data=[list(row) for row in samples])
        self._run.log({"step": step, **metrics, **table})

    def report(self, path: Path) -> None:
        """Log the report as an artifact."""
        self._run.log_artifact(str(path), name=f"report-{self.id}", type="report")

    def close(self, *, failed: bool) -> None:
        """Finish the W&B run."""
        self._run.finish(exit_code=int(failed))
