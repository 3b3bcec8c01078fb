# SPDX-License-Identifier: Apache-2.0
"""What a survey finds in annotations, and what it leaves alone."""

from pathlib import Path
from typing import Any

import pytest

from data_pipeline.datasets import open_dataset
from data_pipeline.findings import Finding
from data_pipeline.records import Pair, PersonDataset, Picture, Split
from data_pipeline.survey import cut, survey
from data_pipeline.tokenizer import open_tokenizer
from tests.data_pipeline.test_habits import as_folder

Captions = dict[Any, list[str]]


def split(name: str, captions: Captions) -> Split:
    """Return a split with one picture of each person."""
    images = tuple(Picture(f"{p}.jpg", f"/x/{p}.jpg", p) for p in captions)
    pairs = [
        Pair(i, text) for i, texts in enumerate(captions.values()) for text in texts
    ]
    return Split(name, images, tuple(pairs))


def plain(name: str, people: range) -> Split:
    return split(name, {p: [f"person number {p} in {name}"] for p in people})


def dataset(
    train: Split | None = None,
    val: Split | None = None,
    test: Split | None = None,
    names: tuple[str, ...] = (),
) -> PersonDataset:
    train = plain("train", range(1, 5)) if train is None else train
    test = plain("test", range(8, 10)) if test is None else test
    return PersonDataset("mine", "/x", train, val, test, names)


def kinds(findings: list[Finding]) -> dict[str, tuple[str, int]]:
    return {each.kind: (each.gravity, each.count) for each in findings}


def test_nothing_is_odd_about_a_plain_set() -> None:
    assert survey(dataset(val=plain("val", range(5, 8)))) == []


def test_a_person_in_two_splits_is_a_leak() -> None:
    leaky = dataset(test=plain("test", range(3, 9)))
    assert kinds(survey(leaky)) == {"leak": ("error", 2)}
    assert "people both in train and in test: 2" in str(survey(leaky)[0])
    assert "'3', '4'" in str(survey(leaky)[0])
    # The unknown are nobody in particular.
    unknown = split("train", {-1: ["a man"], 1: ["a boy"], 2: ["a girl"]})
    assert survey(dataset(train=unknown)) == []


def test_splits_with_numbers_of_their_own_are_no_leak() -> None:
    train, test = plain("train", range(300)), plain("test", range(100))
    assert kinds(survey(dataset(train=train, test=test))) == {
        "own-numbers": ("warning", 100)
    }
    for start, stop in ((1, 101), (0, 99)):
        test = plain("test", range(start, stop))
        assert kinds(survey(dataset(train=train, test=test)))["leak"][0] == "error"


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"train": plain("train", range(0))}, {"no-train": ("error", 1)}),
        ({"train": plain("train", range(1))}, {"one-person": ("warning", 1)}),
        ({"test": plain("test", range(0))}, {"no-test": ("warning", 1)}),
    ],
)
def test_what_is_missing(changes: dict[str, Split], wanted: dict) -> None:
    assert kinds(survey(dataset(**changes))) == wanted


def test_without_a_test_split_it_is_said_what_is_measured() -> None:
    empty = plain("test", range(0))
    assert "measures nothing" in str(survey(dataset(test=empty))[0])
    with_val = dataset(test=empty, val=plain("val", range(5, 8)))
    assert "only val can be measured" in str(survey(with_val)[0])


def test_captions_that_say_nothing_or_are_shared() -> None:
    train = split(
        "train",
        {
            1: ["A man.", "a  MAN."],
            2: ["a man.", "in red"],
            3: ["", " ", "!!!"],
            4: ["", "her own", "her own"],
            5: [],
        },
    )
    assert kinds(survey(dataset(train=train))) == {
        "empty-captions": ("warning", 4),
        "no-captions": ("note", 1),
        "shared-captions": ("warning", 3),
    }


@pytest.mark.parametrize("nobody", ["nan", "None", "NULL", "N/A", "-1", -1, "unknown"])
def test_a_word_for_nobody_is_warned_of(tmp_path: Path, nobody: object) -> None:
    people = [nobody, nobody, "anna", "ben"]
    rows = [("train", p, f"{i}.jpg", [f"x{i}"]) for i, p in enumerate(people)]
    got = kinds(survey(as_folder(tmp_path, [*rows, ("test", "eve", "e.jpg", ["e"])])))
    assert got == {"placeholder": ("warning", 2)}


def test_names_that_differ_little_are_told(tmp_path: Path) -> None:
    names = ["Anna", "anna ", "p_1", "P01", "José", "Jose", "eve", "Eva", "p1.0", "漢"]
    rows = [("train", n, f"{i}.jpg", [f"x{i}"]) for i, n in enumerate(names)]
    found = survey(as_folder(tmp_path, [*rows, ("test", "t", "t.jpg", ["t"])]))
    assert kinds(found) == {"similar-names": ("warning", 3)}
    assert "'Anna and anna', 'p_1 and P01 and p1.0', 'José and Jose'" in str(found[0])


def test_cut_captions_are_counted_with_the_longest() -> None:
    tokenizer = open_tokenizer("clip")
    start = "red " * 80
    train = split("train", {1: [start + "coat", "short"], 2: [start + "hat and scarf"]})
    found = cut(dataset(train=train), tokenizer, 77)
    assert kinds(found) == {"cut-captions": ("warning", 2)}
    assert "cut to its 77 positions: 2 of 5" in found[0].text
    assert "then equal, though they differ: 1" in found[0].text
    assert "the longest needs 85: 'red red" in found[0].text
    assert cut(dataset(train=train), tokenizer, 85) == []


def test_notes_of_the_reader_come_first(tmp_path: Path) -> None:
    rows = [
        (s, f"p{i}", f"{i}.jpg", [f"x{i}"]) for i, s in enumerate(["Train", "test"])
    ]
    assert kinds(survey(as_folder(tmp_path, rows))) == {
        "split-names": ("note", 1),
        "one-person": ("warning", 1),
    }
    assert open_dataset("folder", str(tmp_path)).measurable == ("test",)
