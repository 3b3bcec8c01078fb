# SPDX-License-Identifier: Apache-2.0
"""Dual-granularity identity association: learning from pairs alone.

Source: arXiv 2507.06744 and its official code. There is no clustering: links between
pairs are thresholded cosines, made anew at every step, and the only state is a memory
of one image row and one text row for every training pair.
"""

from fmfa_jax.losses.groups import global_loss, group_targets
from fmfa_jax.losses.links import (
    linked_share,
    local_loss,
    local_relations,
    local_targets,
    reverse_kl,
)
from fmfa_jax.methods.weak.checks import (
    MinedQuality,
    check_batch_size,
    check_indices,
    mined_precision,
    start_warning,
)
from fmfa_jax.methods.weak.memory import (
    Bank,
    BankUpdate,
    bank_rows,
    bank_shardings,
    init_bank,
    take_rows,
    update_bank,
)
from fmfa_jax.methods.weak.mining import (
    Mined,
    confidence,
    mine,
    nearest_rows,
)
from fmfa_jax.methods.weak.objective import (
    WeakInputs,
    WeakOptions,
    WeakResult,
    weak_objective,
)

__all__ = [
    "Bank",
    "BankUpdate",
    "Mined",
    "MinedQuality",
    "WeakInputs",
    "WeakOptions",
    "WeakResult",
    "bank_rows",
    "bank_shardings",
    "check_batch_size",
    "check_indices",
    "confidence",
    "global_loss",
    "group_targets",
    "init_bank",
    "linked_share",
    "local_loss",
    "local_relations",
    "local_targets",
    "mine",
    "mined_precision",
    "nearest_rows",
    "reverse_kl",
    "start_warning",
    "take_rows",
    "update_bank",
    "weak_objective",
]
