# SPDX-License-Identifier: Apache-2.0
"""What is learned: one file or folder a method, from a batch to its named losses."""

from fmfa_jax.methods.fmfa import FMFA
from fmfa_jax.methods.method import Epoch, Measured, Method, Task
from fmfa_jax.methods.weak import Weak

METHODS: dict[str, type[Method]] = {"fmfa": FMFA, "weak": Weak}
"""The methods by the names that config.method knows."""

__all__ = ["FMFA", "METHODS", "Epoch", "Measured", "Method", "Task", "Weak"]
