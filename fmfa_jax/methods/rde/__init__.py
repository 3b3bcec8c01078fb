# SPDX-License-Identifier: Apache-2.0
"""RDE: learning from pairs of which some are wrong (Qin et al., CVPR 2024)."""

from fmfa_jax.methods.rde.method import RDEMethod
from fmfa_jax.methods.rde.recipe import RDEOptions, Recipe

__all__ = ["RDEMethod", "RDEOptions", "Recipe"]
