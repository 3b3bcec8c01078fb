# SPDX-License-Identifier: Apache-2.0
"""Few-shot: a share of the training people, the same ones for every seed and format."""

import hashlib
from dataclasses import dataclass, replace

from data_pipeline.findings import Finding
from data_pipeline.records import (
    UNKNOWN_PERSON,
    ImageSource,
    Pair,
    PersonDataset,
    Picture,
    Split,
)


def few_people(dataset: PersonDataset, share: float) -> PersonDataset:
    """Keep the pictures and captions of a share of the people in train.

    Who that is depends on the persons' numbers alone: people are ordered by a digest of
    theirs, and the first ones are taken, so that a smaller share lies within a larger.
    A picture without a person counts as a person with the name of its file. Val and
    test stay as they are.

    Args:
        dataset: As its reader made it.
        share: In (0, 1]; at least one person is kept.

    Raises:
        ValueError: If the share is out of range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"data.people={share!r}: wanted a share in (0, 1]")
    train = dataset.train
    people = sorted({_who(picture) for picture in train.images}, key=_digest)
    kept = frozenset(people[: max(1, round(share * len(people)))])
    if len(kept) >= len(people):
        return dataset
    text = f"training people that data.people={share:g} keeps: {len(kept)} of "
    note = Finding("few-shot", "note", len(kept), f"{text}{len(people)}")
    few = _only(train, [i for i, p in enumerate(train.images) if _who(p) in kept])
    return replace(dataset, train=few, notes=(*dataset.notes, note))


def _who(picture: Picture) -> str:
    known = picture.person != UNKNOWN_PERSON
    return f"person {picture.person}" if known else f"file {picture.file}"


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True)
class _Some:
    """Some pictures of a source, renumbered."""

    source: ImageSource
    images: tuple[int, ...]

    def read(self, index: int) -> bytes:
        """See `ImageSource`."""
        return self.source.read(self.images[index])


def _only(split: Split, images: list[int]) -> Split:
    """Return a split with only these of its pictures, and their captions."""
    number = {image: new for new, image in enumerate(images)}
    pairs = [Pair(number[p.image], p.caption) for p in split.pairs if p.image in number]
    source = split.source and _Some(split.source, tuple(images))
    pictures = tuple(split.images[image] for image in images)
    return Split(split.name, pictures, tuple(pairs), source)
