# SPDX-License-Identifier: Apache-2.0
"""What the host checks and measures beside the step.

Only here may a person id appear, and only to say how good the mined links were.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from data_pipeline.records import UNKNOWN_PERSON
from fmfa_jax.machines.trees import some

COLLINEAR_SHARE = 0.5
"""With more of a batch's pairs linked than this, thresholds mean nothing."""


class LinkCounts(NamedTuple):
    """How good mined links were, where person ids are known.

    Attributes:
        links: Links to another pair, both persons known.
        correct: Those that join one person.
        reachable: Links that could have been correct: for each anchor the other pairs
            of its person, at most k.
    """

    links: int
    correct: int
    reachable: int


def count_links(
    slot: Int[np.ndarray, "b k"],
    valid: Bool[np.ndarray, "b k"],
    index: Int[np.ndarray, " b"],
    person_of_pair: Int[np.ndarray, " pairs"],
) -> LinkCounts:
    """Count the mined links of one batch.

    An anchor's link to its own row is no discovery and not counted. Pairs of unknown
    persons are left out on both sides.
    """
    known = person_of_pair != UNKNOWN_PERSON
    slot = np.where(valid, slot, 0)  # an invalid slot may be any number
    counted = valid & (slot != index[:, None])
    counted &= known[slot] & known[index][:, None]
    correct = counted & (person_of_pair[slot] == person_of_pair[index][:, None])
    persons, pairs = np.unique(person_of_pair[known], return_counts=True)
    anchors = person_of_pair[index[known[index]]]
    mates = pairs[np.searchsorted(persons, anchors)] - 1
    return LinkCounts(
        links=int(counted.sum()),
        correct=int(correct.sum()),
        reachable=int(np.minimum(mates, slot.shape[1]).sum()),
    )


def mined_quality(
    records: Sequence[Any], person_of_pair: Int[np.ndarray, " pairs"] | None
) -> dict[str, float]:
    """Precision and recall of the links of some steps, where they can be told.

    Args:
        records: One {"slot", "valid", "index"} a step.
        person_of_pair: Person of each training pair; None: nothing is known.
    """
    if person_of_pair is None or (person_of_pair == UNKNOWN_PERSON).all():
        return {}
    counts = [
        count_links(each["slot"], each["valid"], each["index"], person_of_pair)
        for each in records
    ]
    links, correct, reachable = (
        sum(getattr(each, name) for each in counts) for name in LinkCounts._fields
    )
    figures = {}
    if links:
        figures["mined_precision"] = correct / links
    if reachable:
        figures["mined_recall"] = correct / reachable
    return figures


def check_indices(index: Int[np.ndarray, " b"], *, pairs: int) -> None:
    """Raise unless a batch names each training pair at most once.

    On the device the first of two equal indices is written and an index outside the
    pairs is not; both are counted in `memory_skipped`.

    Raises:
        ValueError: A duplicate index, or one outside [0, pairs).
    """
    outside = index[(index < 0) | (index >= pairs)]
    if outside.size:
        raise ValueError(
            f"pair indices: wanted 0 to {pairs - 1}, got {some(outside.tolist())}; the "
            "batch comes from another data set than the memory was made for"
        )
    values, counts = np.unique(index, return_counts=True)
    if (counts > 1).any():
        repeated = some(values[counts > 1].tolist())
        raise ValueError(
            f"pair indices: wanted each at most once in a batch, got "
            f"{repeated} more than once; a batch must not be larger "
            f"than the data set ({pairs} pairs) nor repeat a sample"
        )


def start_warning(linked_share: float, *, threshold: float) -> str | None:
    """What to tell a user whose features are too alike to be told apart, or None.

    Args:
        linked_share: The scalar of the first step, in [0, 1].
        threshold: Cosine above which two pairs are linked.
    """
    if linked_share <= COLLINEAR_SHARE:
        return None
    return (
        f"{linked_share:.0%} of the pairs in a batch are nearer than {threshold}: the "
        "features are almost collinear, as untrained towers give them, and the links "
        "of the weak method mean nothing; start from pretrained weights (init.path)"
    )
