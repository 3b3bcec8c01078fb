# SPDX-License-Identifier: Apache-2.0
"""What the training loop checks and measures on the host, outside the step.

Only here may a person id appear, and only to say how good the mined links were.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

UNKNOWN_PERSON = -1
COLLINEAR_SHARE = 0.5  # of the pairs of a batch linked: thresholds mean nothing


@dataclass(frozen=True)
class MinedQuality:
    """How good the mined links of a batch were, where person ids are known.

    Attributes:
        links: links to another pair, both persons known.
        correct: those of them that join one person.
        reachable: links that could have been correct: for each anchor, the other pairs
            of its person, at most k.
    """

    links: int
    correct: int
    reachable: int

    @property
    def precision(self) -> float:
        """Share of the links that are correct; nan without a link."""
        return self.correct / self.links if self.links else float("nan")

    @property
    def recall(self) -> float:
        """Share of the reachable links that were mined; nan where there are none."""
        return self.correct / self.reachable if self.reachable else float("nan")


def mined_precision(
    slot: Int[np.ndarray, "b k"],
    valid: Bool[np.ndarray, "b k"],
    index: Int[np.ndarray, " b"],
    person_of_pair: Int[np.ndarray, " pairs"],
) -> MinedQuality:
    """Precision and recall of mined links; never part of the training step.

    An anchor linked to its own row is no discovery and not counted. Pairs of unknown
    persons (-1) are left out on both sides. Sum `links`, `correct` and `reachable` over
    batches for the figures of an epoch.
    """
    known = person_of_pair != UNKNOWN_PERSON
    slot = np.where(valid, slot, 0)  # an invalid slot may be any number
    counted = valid & (slot != index[:, None])
    counted &= known[slot] & known[index][:, None]
    correct = counted & (person_of_pair[slot] == person_of_pair[index][:, None])
    persons, pairs = np.unique(person_of_pair[known], return_counts=True)
    anchors = person_of_pair[index[known[index]]]
    mates = pairs[np.searchsorted(persons, anchors)] - 1
    return MinedQuality(
        links=int(counted.sum()),
        correct=int(correct.sum()),
        reachable=int(np.minimum(mates, slot.shape[1]).sum()),
    )


def check_indices(index: Int[np.ndarray, " b"], *, pairs: int) -> None:
    """Raise unless a batch names each training pair at most once.

    On the device the first of two equal indices is written and an index outside the
    pairs is not; both are counted in `BankUpdate.skipped`.

    Raises:
        ValueError: a duplicate index, or one outside [0, pairs).
    """
    outside = index[(index < 0) | (index >= pairs)]
    if outside.size:
        raise ValueError(
            f"pair indices: wanted 0 to {pairs - 1}, got {_some(outside)}; the batch "
            "comes from another data set than the memory was made for"
        )
    values, counts = np.unique(index, return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"pair indices: wanted each at most once in a batch, got "
            f"{_some(values[counts > 1])} more than once; a batch must not be larger "
            f"than the data set ({pairs} pairs) nor repeat a sample"
        )


def check_batch_size(batch_size: int, *, pairs: int) -> None:
    """Raise unless the data set fills a batch.

    Raises:
        ValueError: fewer pairs than the batch has places.
    """
    if pairs < batch_size:
        raise ValueError(
            f"the weak method needs at least one whole batch of different pairs: the "
            f"data set has {pairs}, train.batch_size is {batch_size}; lower it to at "
            f"most {pairs}"
        )


def start_warning(linked_share: float, *, threshold: float = 0.7) -> str | None:
    """What to tell a user whose features are too alike to be told apart, or None.

    Args:
        linked_share: the measurement of the first steps, in [0, 1].
        threshold: cosine above which two pairs are linked.
    """
    if linked_share <= COLLINEAR_SHARE:
        return None
    return (
        f"{linked_share:.0%} of the pairs in a batch are nearer than {threshold}: the "
        "features are almost collinear, as untrained towers give them, and the links "
        "of the weak method mean nothing; start from pretrained weights (init.path)"
    )


def _some(values: np.ndarray) -> str:
    """The first few of `values`, and how many there are."""
    head = ", ".join(str(value) for value in values[:5])
    return head if values.size <= 5 else f"{head}, ... ({values.size} in all)"
