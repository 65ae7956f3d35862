"""Records a run with trackio (extra trackio)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ulorl.config.tree import Config
from ulorl.runs.tracker import SampleRow, run_name


class Trackio:
    """One trackio run for the folder, which a resumed run continues. TRACKIO_DIR says where trackio stores it.

    id: the name of the run to continue, "" for a new one. trackio finds a run by its name, so the name ends in a random
    number: two folders may have the same name.
    """

    def __init__(self, run_dir: Path, config: Config, id: str) -> None:
        import trackio

        self._table: Any = trackio.Table
        self.id = id or f"{run_name(run_dir)}-{os.urandom(4).hex()}"
        self._run = trackio.init(
            project=config.log.project, name=self.id, config=config.model_dump(mode="json"), resume="allow", embed=False
        )

    def write(self, step: int, metrics: Mapping[str, float | int], samples: Sequence[SampleRow]) -> None:
        """Log one step."""
        table = {}
        if samples:
            table["samples"] = self._table(columns=list(SampleRow._fields), data=[list(row) for row in samples])
        self._run.log({**metrics, **table}, step=step)

    def report(self, path: Path) -> None:
        """Log the report as an artifact."""
        self._run.log_artifact(path, name=f"report-{self.id}", type="report")

    def close(self, *, failed: bool) -> None:  # noqa: ARG002
        """Finish the trackio run."""
        self._run.finish()
