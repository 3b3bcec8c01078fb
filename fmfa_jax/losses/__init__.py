# SPDX-License-Identifier: Apache-2.0
"""Losses as pure functions of arrays over the global batch."""

from fmfa_jax.losses.alignment import efa
from fmfa_jax.losses.arithmetic import cosines
from fmfa_jax.losses.classification import (
    identity_loss,
    labelled_mean,
    token_losses,
    word_losses,
)
from fmfa_jax.losses.links import global_loss, local_loss
from fmfa_jax.losses.matching import cmpm, itc, pair_itc, pair_sdm, sdm
from fmfa_jax.losses.triplet import tal, trl

__all__ = [
    "cmpm",
    "cosines",
    "efa",
    "global_loss",
    "identity_loss",
    "itc",
    "labelled_mean",
    "local_loss",
    "pair_itc",
    "pair_sdm",
    "sdm",
    "tal",
    "token_losses",
    "trl",
    "word_losses",
]
