# SPDX-License-Identifier: Apache-2.0
"""What is odd about a data set's people and captions, found without any picture."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from data_pipeline.findings import Finding, examples, shortened
from data_pipeline.records import UNKNOWN_PERSON, PersonDataset, Split
from data_pipeline.tokenizer import Tokenizer, cut_captions

PLACEHOLDERS = frozenset(
    "nan none null nil n/a na <na> nat -1 -1.0 ? - unknown unk undefined".split()
)
"""What stands for "nobody knows" in tables; as a person's name it makes all of them one
person. Empty, null and NaN are read as unknown."""

_OWN_NUMBERS = 100
"""With at least so many people in both splits, numbered without gaps from the same
start, each split is taken to have numbers of its own."""


def survey(dataset: PersonDataset) -> list[Finding]:
    """Return everything odd about people and captions, the reader's notes first."""
    return [
        *dataset.notes,
        *_splits(dataset),
        *_leaks(dataset),
        *_names(dataset),
        *(finding for split in dataset.splits for finding in _captions(split)),
    ]


def cut(
    dataset: PersonDataset, tokenizer: Tokenizer, context_length: int
) -> list[Finding]:
    """Return whether captions are cut, how many, and which needs the most positions."""
    captions = [text for split in dataset.splits for text in split.captions]
    lengths = cut_captions(tokenizer, captions, context_length)
    if not lengths:
        return []
    longest = max(lengths, key=lengths.__getitem__)
    texts = [captions[i] for i in lengths]
    rows = tokenizer.encode(list(dict.fromkeys(texts)), context_length)
    merged = len(rows) - len(np.unique(rows, axis=0))
    equal = f"; then equal, though they differ: {merged}" if merged else ""
    text = (
        f"captions longer than the context, cut to its {context_length} positions: "
        f"{len(lengths)} of {len(captions)}{equal}; the longest needs "
        f"{lengths[longest]}: '{shortened(captions[longest])}'"
    )
    return [Finding("cut-captions", "warning", len(lengths), text)]


def _splits(dataset: PersonDataset) -> Iterator[Finding]:
    if not dataset.train.pairs:
        text = "no picture of train has a caption: there is nothing to learn from"
        yield Finding("no-train", "error", 1, text)
    elif len(dataset.train.identities) == 1:
        text = "train has a single person: there is nobody to tell from another"
        yield Finding("one-person", "warning", 1, text)
    if dataset.test.pairs:
        return
    if dataset.val is not None and dataset.val.pairs:
        text = "test has no captions: only val can be measured"
    else:
        text = (
            "neither val nor test has captions: a run trains, but measures nothing. "
            "Put some people into split test; data.options.test_share=0.1 does so for "
            "the reader folder"
        )
    yield Finding("no-test", "warning", 1, text)


def _leaks(dataset: PersonDataset) -> Iterator[Finding]:
    for one, other in combinations(dataset.splits, 2):
        both = np.intersect1d(one.identities, other.identities)
        if not len(both):
            continue
        where = f"both in {one.name} and in {other.name}"
        if _have_own_numbers(one, other) and not dataset.person_names:
            text = (
                f"numbers of people {where}: {len(both)}; both count from {both[0]}, "
                "so these are taken for different people"
            )
            yield Finding("own-numbers", "warning", len(both), text)
            continue
        names = dataset.person_names or {i: str(i) for i in both.tolist()}
        few = examples((names[i] for i in both.tolist()), of=len(both))
        text = f"people {where}: {len(both)} ({few}); its figures will be too good"
        yield Finding("leak", "error", len(both), text)


def _have_own_numbers(one: Split, other: Split) -> bool:
    ids = (one.identities.tolist(), other.identities.tolist())
    return ids[0][0] == ids[1][0] and all(
        len(each) >= _OWN_NUMBERS and each[-1] - each[0] == len(each) - 1
        for each in ids
    )


def _names(dataset: PersonDataset) -> Iterator[Finding]:
    names = dataset.person_names
    pictures = Counter(
        person for split in dataset.splits for person in split.image_persons.tolist()
    )
    for number, name in enumerate(names):
        if name.casefold() in PLACEHOLDERS:
            text = (
                f"pictures of a person called '{shortened(name)}', who counts as one "
                f"person: {pictures[number]}; where nobody knows who it is, leave the "
                "field empty"
            )
            yield Finding("placeholder", "warning", pictures[number], text)
    alike = defaultdict(list)
    for name in names:
        alike[_outline(name)].append(name)
    groups = [group for group in alike.values() if len(group) > 1]
    if groups:
        few = examples((" and ".join(group) for group in groups), of=len(groups))
        text = f"people with names that differ little: {len(groups)} ({few})"
        yield Finding("similar-names", "warning", len(groups), text)


def _outline(name: str) -> str:
    """Return what is left of a name without case, marks, blanks and leading zeros."""
    text = unicodedata.normalize("NFKD", name).casefold().removesuffix(".0")
    text = "".join(c for c in text if c.isalnum())
    return re.sub(r"(?<![0-9])0+(?=[0-9])", "", text) or name


def _captions(split: Split) -> Iterator[Finding]:
    empty = [i for i, text in enumerate(split.captions) if not _says_something(text)]
    if empty:
        files = (split.images[split.pairs[i].image].file for i in empty)
        text = (
            f"captions of {split.name} without a letter or digit: {len(empty)} "
            f"({examples(files, of=len(empty))})"
        )
        yield Finding("empty-captions", "warning", len(empty), text)
    silent = len(split.images) - len(np.unique(split.pair_images))
    if silent:
        use = "not used" if split.name == "train" else "in the gallery alone"
        text = f"pictures of {split.name} without a caption, {use}: {silent}"
        yield Finding("no-captions", "note", silent, text)
    yield from _shared(split, set(empty))


def _shared(split: Split, without: set[int]) -> Iterator[Finding]:
    """Yield whether one sentence is about several people."""
    people: dict[str, set[int]] = defaultdict(set)
    uses: Counter[str] = Counter()
    for i, (text, person) in enumerate(
        zip(split.captions, split.pair_persons.tolist(), strict=True)
    ):
        if i not in without and person != UNKNOWN_PERSON:
            words = " ".join(text.casefold().split())
            people[words].add(person)
            uses[words] += 1
    shared = [words for words, who in people.items() if len(who) > 1]
    if shared:
        pairs = sum(uses[words] for words in shared)
        whom = len(set().union(*(people[words] for words in shared)))
        text = (
            f"sentences of {split.name} about several people each: {len(shared)} "
            f"({examples(shared, of=len(shared))}), {pairs} captions of {whom} people"
        )
        yield Finding("shared-captions", "warning", pairs, text)


def _says_something(text: Sequence[str]) -> bool:
    return any(c.isalnum() for c in text)
