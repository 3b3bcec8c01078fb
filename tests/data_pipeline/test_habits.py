# SPDX-License-Identifier: Apache-2.0
"""Annotations as people write them, in a published layout and in a user's folder."""

import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.datasets import AnnotationError, DatasetMissing, open_dataset
from data_pipeline.datasets.published import LAYOUTS
from data_pipeline.records import PersonDataset
from tests.data_pipeline.tiny_sets import write_picture

CUHK = LAYOUTS["cuhk_pedes"]
Rows = list[tuple[str, Any, str, list[str]]]
"""Split, person, file and captions of each entry."""

PLAIN: Rows = [
    ("train", 1, "a/1.jpg", ["a man"]),
    ("train", 2, "a/2.jpg", ["a woman"]),
    ("val", 3, "a/3.jpg", ["a girl"]),
    ("test", 4, "a/4.jpg", ["a boy"]),
]


def as_layout(root: Path, rows: Rows) -> PersonDataset:
    names = ("split", "id", "file_path", "captions")
    folder = root / "CUHK-PEDES"
    (folder / "imgs").mkdir(parents=True, exist_ok=True)
    entries = [dict(zip(names, row, strict=True)) for row in rows]
    (folder / "reid_raw.json").write_text(json.dumps(entries))
    return open_dataset("cuhk_pedes", str(root))


def as_folder(root: Path, rows: Rows) -> PersonDataset:
    names = ("split", "person", "file", "captions")
    lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
    (root / "captions.jsonl").write_text("\n".join(lines))
    return open_dataset("folder", str(root))


READERS = pytest.mark.parametrize("read", [as_layout, as_folder])
Read = Callable[[Path, Rows], PersonDataset]


def people(dataset: PersonDataset) -> dict[str, list[int]]:
    return {split.name: split.image_persons.tolist() for split in dataset.splits}


def kinds(dataset: PersonDataset) -> dict[str, int]:
    return {note.kind: note.count for note in dataset.notes}


@READERS
def test_plain_rows_have_no_notes(tmp_path: Path, read: Read) -> None:
    dataset = read(tmp_path, PLAIN)
    assert dataset.notes == ()
    assert [len(people(dataset)[name]) for name in ("train", "val", "test")] == [
        2,
        1,
        1,
    ]


@READERS
@pytest.mark.parametrize(
    "spell",
    [str.title, str.upper, "{} ".format, "\t{}".format],
    ids=["title", "upper", "blank behind", "tab before"],
)
def test_splits_are_read_in_any_case_and_with_blanks(
    tmp_path: Path, read: Read, spell: Callable[[str], str]
) -> None:
    wanted = read(tmp_path, PLAIN)
    # One row in two, since half a split is lost more easily than a whole one.
    rows = [(spell(s) if i % 2 else s, *rest) for i, (s, *rest) in enumerate(PLAIN)]
    got = read(tmp_path, rows)
    assert got.fingerprint == wanted.fingerprint
    assert kinds(got) == {"split-names": 2}


@READERS
@pytest.mark.parametrize("name", ["", "trainval", "gallery", "tset"])
def test_other_splits_are_refused(tmp_path: Path, read: Read, name: str) -> None:
    with pytest.raises(AnnotationError, match="'split': wanted train, val or test"):
        read(tmp_path, [*PLAIN[:3], (name, *PLAIN[3][1:])])


@READERS
@pytest.mark.parametrize("nobody", [None, "", "  ", float("nan")], ids=repr)
def test_nobody_is_not_somebody(tmp_path: Path, read: Read, nobody: object) -> None:
    rows = [*PLAIN, *((s, nobody, f"b/{f}", c) for s, _, f, c in PLAIN)]
    dataset = read(tmp_path, rows)
    got = people(dataset)
    assert got["train"][2:] == [-1, -1]
    assert dataset.train.pair_labels.tolist() == [0, 1, -1, -1]
    # In val and test each is a person of its own, beside all others.
    assert len({*got["train"], *got["val"], *got["test"]} - {-1}) == 6
    assert kinds(dataset) == {"unknown-people": 4}


@READERS
def test_whole_floats_are_numbers(tmp_path: Path, read: Read) -> None:
    wanted = read(tmp_path, PLAIN)
    got = read(tmp_path, [(s, float(p), f, c) for s, p, f, c in PLAIN])
    assert got.fingerprint == wanted.fingerprint
    with pytest.raises(AnnotationError, match=r"whole number.*, got float 1\.5"):
        read(tmp_path, [("train", 1.5, "a/1.jpg", [])])


@pytest.mark.parametrize(
    "respell", ["{} ".format, lambda n: unicodedata.normalize("NFD", n)], ids=["b", "d"]
)
def test_one_person_in_two_spellings(
    tmp_path: Path, respell: Callable[[str], str]
) -> None:
    rows = [("train", name, f"{i}.jpg", ["x"]) for i, name in enumerate(["José"] * 2)]
    rows[1] = ("train", respell("José"), *rows[1][2:])
    dataset = as_folder(tmp_path, rows)
    assert dataset.person_names == ("José",)
    assert dataset.train.image_persons.tolist() == [0, 0]


PATHS = {
    "backslashes": ("a/1.jpg", "a\\1.jpg"),
    "blank after": ("a/1.jpg", "a/1.jpg "),
    "blanks around": ("a/1.jpg", "\ta/1.jpg\n"),
    "composed": ("a/cafe\u0301.jpg", "a/caf\u00e9.jpg"),
    "decomposed": ("a/caf\u00e9.jpg", "a/cafe\u0301.jpg"),
    "folder": ("cafe\u0301/1.jpg", "caf\u00e9\\1.jpg "),
    "literal": ("a\\1.jpg", "a\\1.jpg"),
    "literal blank": ("1.jpg ", "1.jpg "),
}


@READERS
@pytest.mark.parametrize(("there", "said"), PATHS.values(), ids=PATHS.keys())
def test_paths_lead_to_the_file_that_is_there(
    tmp_path: Path, read: Read, there: str, said: str
) -> None:
    folder = Path(read(tmp_path, PLAIN).image_folder)
    write_picture(folder / "picture.png")
    (folder / there).parent.mkdir(exist_ok=True)
    (folder / "picture.png").rename(folder / there)
    dataset = read(tmp_path, [("train", 1, said, ["a man"])])
    assert dataset.train.images[0].path == str(folder / there)
    assert dataset.train.images[0].file == said
    assert dataset.train.read(0)
    assert kinds(dataset) == ({} if said == "a/caf\u00e9.jpg" else {"paths": 1})


@READERS
def test_one_picture_in_several_entries(tmp_path: Path, read: Read) -> None:
    twice = [*PLAIN, ("train", 1, ".\\a\\1.jpg ", ["in red"])]
    dataset = read(tmp_path, twice)
    assert dataset.train.captions == ["a man", "in red", "a woman"]
    assert dataset.train.pair_images.tolist() == [0, 0, 1]
    assert kinds(dataset) == {"repeated-pictures": 1}
    for change in (("train", 2), ("test", 1)):
        with pytest.raises(AnnotationError, match=r"as (entry 0|line 1) says of this"):
            read(tmp_path, [*PLAIN, (*change, "a/1.jpg", ["x"])])


def test_the_file_without_splits_is_known(tmp_path: Path) -> None:
    as_layout(tmp_path, PLAIN)
    annotation = tmp_path / "CUHK-PEDES/reid_raw.json"
    entries = json.loads(annotation.read_text())
    for entry in entries:
        del entry["split"]
    annotation.write_text(json.dumps(entries))
    with pytest.raises(AnnotationError, match=r"caption_all\.json has no splits, so "):
        open_dataset("cuhk_pedes", str(tmp_path))
    annotation.rename(annotation.with_name("caption_all.json"))
    with pytest.raises(DatasetMissing, match=r"caption_all\.json: found, but this "):
        open_dataset("cuhk_pedes", str(tmp_path))


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir], ids=["pipe", "folder"])
def test_only_regular_files_are_pictures(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    dataset = as_folder(tmp_path, [("train", 1, "1.jpg", ["x"])])
    make(tmp_path / "1.jpg")
    with pytest.raises(OSError, match="no regular file"):
        dataset.train.read(0)


def test_names_are_safe_to_print(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError) as caught:
        as_folder(tmp_path, [("train", 1, "../\x1b]0;x\x07\u202e.jpg", ["x"])])
    assert str(caught.value).isprintable()


def share(root: Path, rows: Rows, part: float) -> dict[str, set[str]]:
    as_folder(root, rows)
    dataset = open_dataset("folder", str(root), test_share=part)
    return {s.name: {i.file for i in s.images} for s in dataset.splits}


def test_a_share_of_the_people_is_set_aside(tmp_path: Path) -> None:
    rows = [
        (None, None if p == 9 else f"p{p}", f"{p}_{i}.jpg", ["x"])
        for p in range(10)
        for i in range(2)
    ]
    first = share(tmp_path, rows, 0.3)
    assert first == share(tmp_path, rows[::-1], 0.3)
    people = {name: {f.split("_")[0] for f in files} for name, files in first.items()}
    assert people["test"] and not (people["test"] - {"9"}) & people["train"]
    # Ten people with a name or without one, and one more for the second unnamed file.
    assert len({p for p in first["test"]}) in (5, 6) and len(first["train"]) in (14, 15)
    assert first["test"] <= share(tmp_path, rows, 0.6)["test"]
    # Switched off, it may stand in a config whose reader does not know it.
    as_layout(tmp_path, PLAIN)
    assert open_dataset("cuhk_pedes", str(tmp_path), test_share=0.0).measurable
    with pytest.raises(ValueError, match="option='test_share' is not known"):
        open_dataset("cuhk_pedes", str(tmp_path), test_share=0.1)
    with pytest.raises(ValueError, match="wanted more than 0, below 1"):
        share(tmp_path, rows, 1.0)
    with pytest.raises(ValueError, match="got lines in test: leave test_share out"):
        share(tmp_path, [*rows, ("test", "x", "x.jpg", ["x"])], 0.3)
