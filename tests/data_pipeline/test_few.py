# SPDX-License-Identifier: Apache-2.0
"""A share of the training people: which, and that nothing else changes."""

import hashlib
from dataclasses import replace

import pytest

from data_pipeline.datasets import open_dataset
from data_pipeline.datasets.few import few_people
from data_pipeline.datasets.published import LAYOUTS
from data_pipeline.records import UNKNOWN_PERSON, PersonDataset
from tests.data_pipeline.tiny_sets import tiny_entries, write_layout

CUHK = LAYOUTS["cuhk_pedes"]
PEOPLE = 10


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> str:
    """Ten people to train on, each with two pictures and three captions."""
    root = tmp_path_factory.mktemp("few")
    first, second, *rest = tiny_entries(CUHK)
    train = [
        entry | {"id": 100 + n, "file_path": f"{n}/{entry['file_path']}"}
        for n in range(PEOPLE)
        for entry in (first, second)
    ]
    write_layout(root, CUHK, [*train, *(e for e in rest if e["split"] != "train")])
    return str(root)


@pytest.fixture(scope="module")
def whole(root) -> PersonDataset:
    return open_dataset("cuhk_pedes", root)


def chosen(share: float) -> list[int]:
    """The first people by the digest of their numbers, sorted by hand."""
    people = [100 + n for n in range(PEOPLE)]
    people.sort(key=lambda p: hashlib.sha256(f"person {p}".encode()).hexdigest())
    return people[: max(1, round(share * PEOPLE))]


@pytest.mark.parametrize("share", [0.01, 0.1, 0.34, 0.5, 0.99])
def test_the_people_are_those_of_the_first_digests(root, whole, share):
    few = open_dataset("cuhk_pedes", root, people=share)
    kept = [p for p in whole.train.images if p.person in chosen(share)]
    assert list(few.train.images) == kept
    wanted = [
        (whole.train.images[pair.image].file, pair.caption)
        for pair in whole.train.pairs
        if whole.train.images[pair.image].person in chosen(share)
    ]
    got = [(few.train.images[p.image].file, p.caption) for p in few.train.pairs]
    assert got == wanted and len(got) == 3 * len(chosen(share))
    assert few.train.identities.tolist() == sorted(chosen(share))
    assert (few.val, few.test) == (whole.val, whole.test)


def test_it_is_noted_and_another_data_set(root, whole):
    half = open_dataset("cuhk_pedes", root, people=0.5)
    assert half.fingerprint != whole.fingerprint
    assert [str(n) for n in half.notes if n.kind == "few-shot"] == [
        "note: training people that data.people=0.5 keeps: 5 of 10"
    ]
    assert open_dataset("cuhk_pedes", root, people=1.0).fingerprint == whole.fingerprint


def test_a_picture_without_a_person_is_a_person_of_its_own(whole):
    images = tuple(replace(p, person=UNKNOWN_PERSON) for p in whole.train.images)
    unknown = replace(whole, train=replace(whole.train, images=images))
    few = few_people(unknown, 0.25)
    assert len(few.train.images) == 5
    assert set(few.train.image_persons.tolist()) == {UNKNOWN_PERSON}


def test_pictures_from_a_source_keep_their_bytes(whole):
    class Names:
        def read(self, index: int) -> bytes:
            return whole.train.images[index].file.encode()

    shards = replace(whole, train=replace(whole.train, source=Names()))
    few = few_people(shards, 0.3).train
    assert [few.read(i).decode() for i in range(6)] == [p.file for p in few.images]


@pytest.mark.parametrize("share", [0.0, -1.0, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(whole, share):
    with pytest.raises(ValueError, match=r"data\.people=.*wanted a share in \(0, 1\]"):
        few_people(whole, share)
