# SPDX-License-Identifier: Apache-2.0
"""MLflow, where the package mlflow (or mlflow-skinny) is installed.

Its own variable says where it writes to: MLFLOW_TRACKING_URI.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.regular import read_json
from fmfa_jax.files import write_json
from fmfa_jax.run.writers.background import artefacts

RECORD = "mlflow.json"
"""In a run's folder: the run of MLflow that goes on after a restart."""

_PARAMS, _LETTERS = 100, 6000  # of one request, and of one value


class MLflow:
    """Scalars, config and files of a run; see `background.Tracker`."""

    def __init__(
        self, folder: Path, *, experiment: str, name: str, config: Mapping[str, Any]
    ) -> None:
        """Begin a run, or go on with the one of this folder.

        Args:
            folder: Folder of the run.
            experiment: The run's experiment, made where there is none.
            name: What the run is called.
            config: Dotted key -> value; of a new run, its parameters.
        """
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient, entities

        self._entities, self._folder = entities, folder
        self._client = MlflowClient()
        place = {"at": self._client.tracking_uri, "experiment": experiment}
        record = folder / RECORD
        known = read_json(record) if record.is_file() else {}
        if place.items() <= known.items():
            self._run = known["run"]
            self._client.update_run(self._run, status="RUNNING")
            return
        self._run = self._begun(experiment, name)
        write_json(record, {**place, "run": self._run})
        params = [entities.Param(k, str(v)[:_LETTERS]) for k, v in config.items()]
        for start in range(0, len(params), _PARAMS):
            self._client.log_batch(self._run, params=params[start : start + _PARAMS])

    def _begun(self, experiment: str, name: str) -> str:
        found = self._client.get_experiment_by_name(experiment)
        number = (
            found.experiment_id if found else self._client.create_experiment(experiment)
        )
        return self._client.create_run(number, run_name=name).info.run_id

    def scalars(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Write one entry."""
        now = int(1000 * time.time())
        metrics = [
            self._entities.Metric(name, value, now, step)
            for name, value in {"epoch": epoch, **values}.items()
        ]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self) -> None:
        """Write files, and end."""
        for file in artefacts(self._folder):
            parent = str(file.parent.relative_to(self._folder))
            place = None if parent == "." else parent
            self._client.log_artifact(self._run, str(file), place)
        self._client.set_terminated(self._run)
