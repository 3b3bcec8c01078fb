# SPDX-License-Identifier: Apache-2.0
"""Where a run's log goes: one file a writer."""

from fmfa_jax.run.writers.background import Background
from fmfa_jax.run.writers.jsonl import JsonLines
from fmfa_jax.run.writers.mlflow import MLflow
from fmfa_jax.run.writers.tensorboard import TensorBoard
from fmfa_jax.run.writers.terminal import Terminal
from fmfa_jax.run.writers.wandb import WandB

__all__ = ["Background", "JsonLines", "MLflow", "TensorBoard", "Terminal", "WandB"]
