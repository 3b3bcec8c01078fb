# SPDX-License-Identifier: Apache-2.0
"""Dual-granularity weak supervision: learning from pairs alone (arXiv 2507.06744)."""

from fmfa_jax.methods.weak.method import WeakMethod
from fmfa_jax.methods.weak.recipe import Recipe, WeakOptions

__all__ = ["Recipe", "WeakMethod", "WeakOptions"]
