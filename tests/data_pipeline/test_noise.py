# SPDX-License-Identifier: Apache-2.0
"""Noisy correspondence: the published permutations, and what they leave alone."""

import hashlib
import io

import numpy as np
import pytest

from data_pipeline.noise import noisy_index, with_noise
from data_pipeline.records import UNKNOWN_PERSON, Pair, PersonDataset, Picture, Split
from data_pipeline.survey import survey

# The index files of RDE: pairs, and for each rate the captions that moved and the start
# of the file's SHA-256.
PUBLISHED = {
    "CUHK-PEDES": (
        68126,
        {
            0.2: (13624, "82919f1ad5e7126a"),
            0.5: (34062, "2ad253163961d83d"),
            0.8: (54500, "5a7cc89fa6d10200"),
        },
    ),
    "ICFG-PEDES": (
        34674,
        {
            0.2: (6933, "80b294a4721e086a"),
            0.5: (17337, "e785165bf9620d25"),
            0.8: (27737, "5230c2ad75734f35"),
        },
    ),
    "RSTPReid": (
        37010,
        {
            0.2: (7400, "6be11826bc88bca2"),
            0.5: (18505, "ad1e4f4261df9307"),
            0.8: (29605, "9715ed73d5cad019"),
        },
    ),
}
CASES = [(name, rate) for name, (_, rates) in PUBLISHED.items() for rate in rates]


@pytest.mark.parametrize(("name", "rate"), CASES)
def test_the_published_files_are_drawn_to_the_bit(name, rate):
    size, rates = PUBLISHED[name]
    index, file = noisy_index(size, rate), io.BytesIO()
    np.save(file, index)
    moved = int((index != np.arange(size)).sum())
    digest = hashlib.sha256(file.getvalue()).hexdigest()[:16]
    assert (moved, digest) == rates[rate]


def people(name: str = "train", *, unknown: bool = False) -> Split:
    """Two pictures of each of 30 people, two captions each."""
    pictures = tuple(
        Picture(f"{i}.jpg", f"/x/{i}.jpg", UNKNOWN_PERSON if unknown else i // 2)
        for i in range(60)
    )
    pairs = tuple(Pair(i // 2, f"picture {i // 2}, sentence {i}") for i in range(120))
    return Split(name, pictures, pairs)


def noisy(rate, unknown=False, **options):
    data = PersonDataset("mine", "/x", people(unknown=unknown), None, people("test"))
    return data, with_noise(data, rate, **options)


def about(caption: str) -> int:
    """The picture that a caption was written for."""
    return int(caption.split()[1].rstrip(","))


@pytest.mark.parametrize("unknown", [False, True])
def test_captions_move_and_nothing_else_does(unknown):
    clean, data = noisy(0.8, unknown)
    assert data.test is clean.test
    assert data.train.images == clean.train.images
    np.testing.assert_array_equal(data.train.pair_labels, clean.train.pair_labels)
    np.testing.assert_array_equal(data.train.pair_images, clean.train.pair_images)
    assert sorted(data.train.captions) == sorted(clean.train.captions)
    for pair, wrong in zip(data.train.pairs, data.train.noisy, strict=True):
        one, other = pair.image, about(pair.caption)
        assert wrong == (one != other if unknown else one // 2 != other // 2)
    assert data.train.noisy.sum() > 60
    assert not data.train.noisy.flags.writeable


def test_noise_is_part_of_what_the_data_is_and_told_in_a_line():
    clean, data = noisy(0.5)
    moved = sum(map(str.__ne__, clean.train.captions, data.train.captions))
    wrong = int(data.train.noisy.sum())
    assert 50 < moved <= 60 and wrong <= moved
    (note,) = [finding for finding in survey(data) if finding.kind == "noise"]
    assert note.gravity == "note" and note.count == moved
    for words in (f"{moved} of 120", "noise 0.5, seed 1", f"{wrong} are beside"):
        assert words in str(note)
    prints = [clean, data, noisy(0.5, seed=2)[1], noisy(0.2)[1]]
    assert len({each.fingerprint for each in prints}) == 4
    assert data.fingerprint == noisy(0.5)[1].fingerprint


def test_no_noise_is_the_data_as_it_was():
    clean, data = noisy(0.0)
    assert data is clean and data.train.noisy is None
