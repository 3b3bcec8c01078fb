# SPDX-License-Identifier: Apache-2.0
"""What is learned: one file or folder a method, from a batch to its named losses."""

from fmfa_jax.methods.fmfa import FMFAMethod
from fmfa_jax.methods.method import Epoch, Measured, Method, Task
from fmfa_jax.methods.rde import RDEMethod
from fmfa_jax.methods.weak import WeakMethod

METHODS: dict[str, type[Method]] = {
    "fmfa": FMFAMethod,
    "weak": WeakMethod,
    "rde": RDEMethod,
}
"""The methods by the names that config.method knows."""

__all__ = [
    "METHODS",
    "Epoch",
    "FMFAMethod",
    "Measured",
    "Method",
    "RDEMethod",
    "Task",
    "WeakMethod",
]
