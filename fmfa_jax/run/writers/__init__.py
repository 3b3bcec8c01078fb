# SPDX-License-Identifier: Apache-2.0
"""Where a run's log goes: one file a writer."""

from fmfa_jax.run.writers.jsonl import JsonLines
from fmfa_jax.run.writers.tensorboard import TensorBoard
from fmfa_jax.run.writers.terminal import Terminal

__all__ = ["JsonLines", "TensorBoard", "Terminal"]
