# SPDX-License-Identifier: Apache-2.0
"""Losses: pure functions of arrays over the global batch, float32 inside."""

from fmfa_jax.losses.alignment import efa
from fmfa_jax.losses.identity import identity_loss
from fmfa_jax.losses.masked_language import masked_language_loss, token_losses
from fmfa_jax.losses.matching import cmpm, cosines, itc, sdm
from fmfa_jax.losses.objective import TERMS, Inputs, Options, objective

__all__ = [
    "TERMS",
    "Inputs",
    "Options",
    "cmpm",
    "cosines",
    "efa",
    "identity_loss",
    "itc",
    "masked_language_loss",
    "objective",
    "sdm",
    "token_losses",
]
