"""Records a run with MLflow (extra mlflow)."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ulorl.config.tree import Config
from ulorl.runs.tracker import SampleRow, config_text, flat_config, run_name

_PARAMS = 100  # that MLflow takes in one call
_LONGEST = 6000  # characters of a parameter that MLflow takes


class Mlflow:
    """One MLflow run for the folder, which a resumed run continues, in the experiment `log.project`.

    The parameters are the configuration at the start, because MLflow lets none change; config.json among the artifacts
    is that of the last start. MLFLOW_TRACKING_URI says where the run is stored; default: mlflow.db in the working
    folder. id: the run to continue; a new one is made when it is "" or does not exist there.
    """

    def __init__(self, run_dir: Path, config: Config, id: str) -> None:
        from mlflow import MlflowClient

        self._client: Any = MlflowClient()
        self.id = id if id and self._exists(id) else self._new_run(run_dir, config)
        self._client.update_run(self.id, status="RUNNING")
        self._client.log_text(self.id, config_text(config), "config.json")

    def write(self, step: int, metrics: Mapping[str, float | int], samples: Sequence[SampleRow]) -> None:
        """Log one step: its metrics, and samples/step_<step>.csv, which MLflow shows as a table."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(self.id, [Metric(name, float(value), now, step) for name, value in metrics.items()])
        if samples:
            text = io.StringIO(newline="")
            csv.writer(text).writerows([SampleRow._fields, *samples])
            self._client.log_text(self.id, text.getvalue(), f"samples/step_{step:06d}.csv")

    def report(self, path: Path) -> None:
        """Log the report as an artifact."""
        self._client.log_artifact(self.id, str(path))

    def close(self, *, failed: bool) -> None:
        """End the MLflow run."""
        self._client.set_terminated(self.id, "FAILED" if failed else "FINISHED")

    def _exists(self, id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return bool(self._client.get_run(id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _new_run(self, run_dir: Path, config: Config) -> str:
        from mlflow.entities import Param

        run = self._client.create_run(self._experiment(config.log.project), run_name=run_name(run_dir))
        params = [Param(key, value[:_LONGEST]) for key, value in flat_config(config).items()]
        for start in range(0, len(params), _PARAMS):
            self._client.log_batch(run.info.run_id, params=params[start : start + _PARAMS])
        return str(run.info.run_id)

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        try:
            return str(self._client.create_experiment(name))
        except MlflowException as error:
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise error from None
            return str(found.experiment_id)
