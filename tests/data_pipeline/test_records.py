# SPDX-License-Identifier: Apache-2.0
"""The records: what they derive, what they reject, what their fingerprint covers."""

from dataclasses import replace

import numpy as np
import pytest

from data_pipeline.records import UNKNOWN_PERSON, Pair, PersonDataset, Picture, Split


def split(name: str = "train", *, persons: tuple[int, ...] = (7, -1, 3, 7, 9)) -> Split:
    """Return pictures of the given people: the last has no caption, the third two."""
    images = tuple(Picture(f"{i}.jpg", f"/x/{i}.jpg", p) for i, p in enumerate(persons))
    pairs = tuple(Pair(i, f"caption {n}") for n, i in enumerate((0, 1, 2, 2, 3)))
    return Split(name, images, pairs)


EMPTY = Split("test", (), ())
DATASET = PersonDataset("mine", "/x", split(), None, split("test"))


def test_arrays_agree_with_a_loop():
    s = split()
    known = sorted({i.person for i in s.images if i.person != UNKNOWN_PERSON})
    persons = [s.images[pair.image].person for pair in s.pairs]
    labels = [known.index(p) if p in known else -1 for p in persons]
    assert s.identities.tolist() == known == [3, 7, 9]
    assert s.image_persons.tolist() == [i.person for i in s.images]
    assert s.pair_images.tolist() == [pair.image for pair in s.pairs]
    assert s.pair_persons.tolist() == persons
    assert s.pair_labels.tolist() == labels == [1, -1, 0, 0, 1]
    assert s.captions == [pair.caption for pair in s.pairs]


@pytest.mark.parametrize("s", [split(), EMPTY], ids=["five", "empty"])
def test_arrays_are_int32_and_cannot_be_changed(s):
    arrays = (s.image_persons, s.pair_images, s.pair_persons, s.pair_labels)
    for array in (*arrays, s.identities):
        assert array.dtype == np.int32
        assert not array.flags.writeable


@pytest.mark.parametrize("image", [-1, 5])
def test_a_pair_of_no_picture_is_refused(image):
    with pytest.raises(ValueError, match=rf"pair 0 refers to picture {image}.*below 5"):
        replace(split(), pairs=(Pair(image, "who?"),))


def test_reads_the_file_or_the_source(tmp_path):
    class Source:
        def read(self, index: int) -> bytes:
            return b"source %d" % index

    path = tmp_path / "a.jpg"
    path.write_bytes(b"file")
    files = Split("train", (Picture("a.jpg", str(path), 1),), ())
    assert files.read(0) == b"file"
    assert replace(files, source=Source()).read(0) == b"source 0"
    path.unlink()
    with pytest.raises(FileNotFoundError):
        files.read(0)


def test_evaluation_split():
    assert DATASET.evaluation_split("test") is DATASET.test
    with pytest.raises(ValueError, match=r"'val'; it has them in: train, test"):
        DATASET.evaluation_split("val")
    with pytest.raises(ValueError, match=r"no captions in split 'test'"):
        replace(DATASET, test=EMPTY).evaluation_split("test")
    with pytest.raises(ValueError, match=r"'train': wanted 'val' or 'test'"):
        DATASET.evaluation_split("train")


def test_contents_tell_pictures_people_and_captions_apart():
    split = DATASET.train
    first, *others = split.images
    moved = replace(split, images=(replace(first, path="/elsewhere"), *others))
    assert moved.contents == split.contents
    # As if another split had more people, whose numbers come first.
    known = [each for each in split.images if each.person != UNKNOWN_PERSON]
    few = replace(split, images=tuple(known), pairs=())
    more = tuple(replace(each, person=2 * each.person + 7) for each in known)
    assert replace(few, images=more).contents == few.contents
    changes = {
        "pictures": {"images": (replace(first, file="other.jpg"), *others)},
        "people": {"images": (replace(first, person=-1), *others)},
        "captions": {"pairs": split.pairs[1:]},
    }
    for name, change in changes.items():
        other = replace(split, **change).contents
        assert [key for key in other if other[key] != split.contents[key]] == [name]


def test_fingerprint_does_not_cover_where_the_data_lies():
    moved = tuple(replace(i, path="/y" + i.path) for i in DATASET.train.images)
    there = replace(
        DATASET, name="other", root="/y", train=replace(DATASET.train, images=moved)
    )
    assert there.fingerprint == DATASET.fingerprint


CHANGES = {
    "person": lambda s: replace(
        s, images=(replace(s.images[0], person=8), *s.images[1:])
    ),
    "file": lambda s: replace(
        s, images=(replace(s.images[0], file="z"), *s.images[1:])
    ),
    "caption": lambda s: replace(
        s, pairs=(replace(s.pairs[0], caption="z"), *s.pairs[1:])
    ),
    "order": lambda s: replace(s, pairs=s.pairs[::-1]),
    "picture of a pair": lambda s: replace(
        s, pairs=(Pair(4, s.captions[0]), *s.pairs[1:])
    ),
    "one picture less": lambda s: replace(s, images=s.images[:-1]),
    "one caption less": lambda s: replace(s, pairs=s.pairs[:-1]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_fingerprint_covers(change):
    changed = replace(DATASET, train=change(DATASET.train))
    assert changed.fingerprint != DATASET.fingerprint


def test_fingerprint_covers_which_split_is_which():
    val = replace(DATASET.test, name="val")
    assert replace(DATASET, val=val, test=EMPTY).fingerprint != DATASET.fingerprint
