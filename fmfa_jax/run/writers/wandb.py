# SPDX-License-Identifier: Apache-2.0
"""Weights & Biases, where the package wandb is installed.

Its own variables say where it writes to: WANDB_MODE, WANDB_ENTITY, WANDB_BASE_URL.
"""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.regular import read_json
from fmfa_jax.files import write_json
from fmfa_jax.run.writers.background import artefacts

RECORD = "wandb.json"
"""In a run's folder: the id under which it goes on after a restart."""


class WandB:
    """Scalars, config, pictures and files of a run; see `background.Tracker`."""

    def __init__(
        self, folder: Path, *, project: str, name: str, config: Mapping[str, Any]
    ) -> None:
        """Begin a run, or go on with the one of this folder.

        Args:
            folder: Folder of the run.
            project: The run's project.
            name: What the run is called.
            config: Dotted key -> value.
        """
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._wandb, self._folder = wandb, folder
        settings = wandb.Settings(
            silent=True, console="off", save_code=False, disable_git=True
        )
        self._run = wandb.init(
            project=project,
            name=name,
            id=_identity(folder / RECORD, project),
            resume="allow",
            dir=str(folder),
            config=dict(config),
            allow_val_change=True,
            settings=settings,
        )
        # Steps after the last checkpoint come again, which wandb's own count forbids.
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Write one entry."""
        self._run.log({"step": step, "epoch": epoch, **values})

    def close(self) -> None:
        """Write pictures and files, and end."""
        files = artefacts(self._folder)
        results = self._wandb.Artifact(f"run-{self._run.id}", type="results")
        for file in files:
            name = str(file.relative_to(self._folder))
            results.add_file(str(file), name=name)
            if file.suffix == ".png":
                self._run.log({name: self._wandb.Image(str(file))})
        if files:
            self._run.log_artifact(results)
        self._run.finish()


def _identity(record: Path, project: str) -> str:
    """Return the id of the folder's run in a project; a new one is noted."""
    known = read_json(record) if record.is_file() else {}
    if known.get("project") == project:
        return known["id"]
    made = secrets.token_hex(8)
    write_json(record, {"project": project, "id": made})
    return made
