# SPDX-License-Identifier: Apache-2.0
"""Noisy correspondence: training captions that are put beside other pictures.

The protocol of RDE (Qin et al., CVPR 2024): a share of the captions is permuted among
each other, pictures and people stay. With seed 1 the permutations are those of its
published index files. Val and test are never touched.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Int, Int64

from data_pipeline.findings import Finding
from data_pipeline.records import UNKNOWN_PERSON, Pair, PersonDataset, Split


def noisy_index(size: int, rate: float, *, seed: int = 1) -> Int64[np.ndarray, "p"]:
    """Return for each pair whose caption it gets, mostly its own.

    From the legacy generator of NumPy, whose stream is frozen, since the published
    files were drawn by it. A few of the chosen captions fall back to their place.

    Args:
        size: Number of pairs.
        rate: Share of the captions that are chosen.
        seed: Of the generator.
    """
    generator = np.random.RandomState(seed)
    order = np.arange(size, dtype=np.int64)
    generator.shuffle(order)
    chosen = order[: int(rate * size)]
    given = chosen.copy()
    generator.shuffle(given)
    index = np.arange(size, dtype=np.int64)
    index[chosen] = given
    return index


def with_noise(dataset: PersonDataset, rate: float, *, seed: int = 1) -> PersonDataset:
    """Return the data set with `rate` of its training captions permuted.

    Its fingerprint is another; its notes say how many captions moved, and its training
    split knows which pairs became wrong. With rate 0 nothing changes.
    """
    if not rate:
        return dataset
    train = dataset.train
    index = noisy_index(len(train.pairs), rate, seed=seed)
    wrong = _wrong(train, index)
    wrong.setflags(write=False)
    pairs = tuple(
        Pair(pair.image, train.pairs[other].caption)
        for pair, other in zip(train.pairs, index.tolist(), strict=True)
    )
    moved = int(np.count_nonzero(index != np.arange(len(index))))
    text = (
        f"captions of train that moved to another pair (noise {rate:g}, seed {seed}): "
        f"{moved} of {len(index)}; {np.count_nonzero(wrong)} are beside another person"
    )
    return replace(
        dataset,
        train=replace(train, pairs=pairs, noisy=wrong),
        notes=(Finding("noise", "note", moved, text), *dataset.notes),
    )


def _wrong(split: Split, index: Int[np.ndarray, "p"]) -> Bool[np.ndarray, "p"]:
    """Return which pairs get the caption of another person.

    Where a person is unknown: of another picture.
    """
    person, image = split.pair_persons, split.pair_images
    known = (person != UNKNOWN_PERSON) & (person[index] != UNKNOWN_PERSON)
    return np.where(known, person != person[index], image != image[index])
