# SPDX-License-Identifier: Apache-2.0
"""The readers: every layout, and every way in which files can be malformed."""

import json
import math
from pathlib import Path

import pytest

from data_pipeline.datasets import AnnotationError, DatasetMissing, open_dataset
from data_pipeline.datasets.annotations import entries_of
from data_pipeline.datasets.published import LAYOUTS
from tests.data_pipeline.tiny_sets import tiny_entries, write_layout, write_lines

ALL = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
CUHK = LAYOUTS["cuhk_pedes"]
ICFG = LAYOUTS["icfg_pedes"]


@ALL
@pytest.mark.parametrize("place", ["parent", "own folder"])
def test_reads_what_the_annotation_says(tmp_path, layout, place):
    folder = write_layout(tmp_path, layout)
    dataset = open_dataset(layout.name, str(tmp_path if place == "parent" else folder))
    wanted = [
        (e["split"], e[layout.file_field], e["id"], tuple(e["captions"]))
        for e in tiny_entries(layout)
    ]
    got = [(e.split, e.file, e.person, e.captions) for e in entries_of(dataset)]
    assert got == wanted
    assert (dataset.name, dataset.root) == (layout.name, str(folder))
    assert (dataset.val is None) == ("val" not in layout.published)
    assert dataset.train.pair_labels.tolist() == [0, 0, 0, 1, 1, 1]
    for split in dataset.splits:
        for index, image in enumerate(split.images):
            path = folder / layout.image_folder / image.file
            assert Path(image.path) == path
            assert split.read(index) == path.read_bytes()


TOTALS = {  # pictures and captions as counted in the papers' abstracts
    "cuhk_pedes": (40206, 80440),
    "icfg_pedes": (54522, 54522),
    "rstp_reid": (20505, 41010),
    "ufine6926": (26206, 52412),
}


@ALL
def test_published_splits_add_up_to_the_papers_totals(layout):
    sizes = layout.published.values()
    totals = sum(s.images for s in sizes), sum(s.captions for s in sizes)
    assert totals == TOTALS[layout.name]


def test_icfg_has_two_known_names(tmp_path):
    folder = write_layout(tmp_path, ICFG)
    here = open_dataset("icfg_pedes", str(tmp_path))
    (folder / ICFG.annotations[0]).rename(folder / "ICFG_PEDES.json")
    assert open_dataset("icfg_pedes", str(tmp_path)).fingerprint == here.fingerprint


def test_two_annotation_files_are_not_passed_over_in_silence(tmp_path, caplog):
    folder = write_layout(tmp_path, ICFG)
    (folder / ICFG.annotations[1]).write_text("nonsense")
    assert len(open_dataset("icfg_pedes", str(tmp_path)).train.images) == 4
    assert "ICFG-PEDES.json and ICFG_PEDES.json: reading the first" in caplog.text


def test_validation_is_val(tmp_path):
    entries = tiny_entries(CUHK)
    entries[4]["split"] = entries[5]["split"] = "validation"
    write_layout(tmp_path, CUHK, entries)
    assert len(open_dataset("cuhk_pedes", str(tmp_path)).val.images) == 2


def test_a_relative_root_gives_absolute_paths(tmp_path, monkeypatch):
    write_layout(tmp_path, CUHK)
    monkeypatch.chdir(tmp_path)
    dataset = open_dataset("cuhk_pedes", ".")
    monkeypatch.chdir("/")
    assert dataset.test.read(0)


@ALL
def test_missing_data_set_is_one_error_that_says_all(tmp_path, layout):
    with pytest.raises(DatasetMissing) as caught:
        open_dataset(layout.name, str(tmp_path))
    message = str(caught.value)
    for place in (tmp_path / layout.folder, tmp_path):
        if layout.image_folder != ".":
            assert f"{place / layout.image_folder}/: missing" in message
        for name in layout.annotations:
            assert f"{place / name}: missing" in message
    assert "on request" in message and layout.page in message


def test_half_a_data_set_says_which_half(tmp_path):
    folder = write_layout(tmp_path, CUHK)
    (folder / "imgs").rename(folder / "images")
    with pytest.raises(DatasetMissing) as caught:
        open_dataset("cuhk_pedes", str(tmp_path))
    assert f"{folder / 'reid_raw.json'}: found" in str(caught.value)
    assert f"{folder / 'imgs'}/: missing" in str(caught.value)


MALFORMED = [  # field, value, and how the error shows the value
    ("split", 3, "int 3"),
    ("split", None, "NoneType None"),
    ("id", "anna", "str 'anna'"),
    ("id", -1, "int -1"),
    ("id", True, "bool True"),
    ("id", 1.5, "float 1.5"),
    ("id", 2**31, "int 2147483648"),
    ("id", "9" * 5000, "str '999"),
    ("id", float("inf"), "float inf"),
    ("id", "nan", "str 'nan'"),
    ("id", [[[[[[[[[[]]]]]]]]]], "list [[[[[["),
    ("split", "", "str ''"),
    ("split", "query", "str 'query'"),
    ("captions", "a man", "str 'a man'"),
    ("captions", ["a man", 5], r"list ['a man', 5]"),
    ("captions", ["half \ud800"], r"list ['half \ud800']"),
    ("file_path", 7, "int 7"),
    ("file_path", "", "str ''"),
    ("file_path", ".", "str '.'"),
    ("file_path", "/etc/passwd", "str '/etc/passwd'"),
    ("file_path", "../secret.jpg", "str '../secret.jpg'"),
    ("file_path", "..\\secret.jpg", r"str '..\\secret.jpg'"),
    ("file_path", "C:\\a.jpg", r"str 'C:\\a.jpg'"),
    ("file_path", "a/../../secret.jpg", "str 'a/../../secret.jpg'"),
    ("file_path", "a\0.jpg", r"str 'a\x00.jpg'"),
]


@pytest.mark.parametrize(("field", "value", "shown"), MALFORMED)
def test_malformed_entry_names_file_index_field_and_value(
    tmp_path, field, value, shown
):
    entries = tiny_entries(CUHK)
    folder = write_layout(tmp_path, CUHK, entries)
    entries[5][field] = value
    (folder / "reid_raw.json").write_text(json.dumps(entries))
    with pytest.raises(AnnotationError) as caught:
        open_dataset("cuhk_pedes", str(tmp_path))
    assert f"{folder / 'reid_raw.json'}, entry 5, field {field!r}: wanted" in str(
        caught.value
    )
    assert f"got {shown}" in str(caught.value)


def test_missing_field_is_named(tmp_path):
    folder = write_layout(tmp_path, LAYOUTS["rstp_reid"])
    entries = tiny_entries(CUHK)  # with file_path, where RSTPReid has img_path
    (folder / "data_captions.json").write_text(json.dumps(entries))
    with pytest.raises(
        AnnotationError, match=r"entry 0, field 'img_path'.*got no such field"
    ):
        open_dataset("rstp_reid", str(tmp_path))


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (b"{", "wanted a JSON file"),
        (b"\xff\xfe[", "wanted a JSON file"),
        (b"[" * 200_000, "wanted a JSON file"),
        (b"[" + b"9" * 5000 + b"]", "wanted a JSON file"),
        (b"{}", "wanted a JSON list with at least one entry, got dict"),
        (b"[]", "wanted a JSON list with at least one entry, got list"),
        (b"[4]", "entry 0: wanted an object with fields, got int 4"),
    ],
    ids=["cut", "not UTF-8", "deep", "digits", "object", "empty", "number"],
)
def test_malformed_file(tmp_path, content, shown):
    folder = write_layout(tmp_path, CUHK)
    (folder / "reid_raw.json").write_bytes(content)
    with pytest.raises(AnnotationError) as caught:
        open_dataset("cuhk_pedes", str(tmp_path))
    assert str(folder / "reid_raw.json") in str(caught.value)
    assert shown in str(caught.value)


def test_an_id_may_be_written_in_digits(tmp_path):
    entries = tiny_entries(CUHK)
    entries[0]["id"] = "0041"
    write_layout(tmp_path, CUHK, entries)
    assert open_dataset("cuhk_pedes", str(tmp_path)).train.images[0].person == 41


@pytest.mark.parametrize("name", ["cuhk-pedes", "tfds:cuhk", "CUHK_PEDES_"])
def test_unknown_name_names_the_near_ones(name):
    with pytest.raises(
        ValueError,
        match=r"data set='.*' is not known; did you mean .*cuhk_pedes.*Possible: cuhk",
    ):
        open_dataset(name, "/nowhere")


@pytest.mark.parametrize("name", ["synthetic", "cuhk_pedes", "tfds:folder"])
def test_unknown_option_is_refused(name):
    with pytest.raises(
        ValueError, match=f"data set '{name}': option='ident' is not known"
    ):
        open_dataset(name, "/nowhere", ident=4)


FOLDER = [
    {"file": "a/1.jpg", "captions": ["a man", "in red"], "person": "anna"},
    {"file": "2.png", "captions": "one text", "split": "train", "person": None},
    {"file": "3.jpg", "captions": ["x"], "split": "val"},
    {"file": "a/4.jpg", "captions": ["y"], "split": "test", "person": 17},
    {"file": "5.jpg", "captions": [], "split": "test"},
    {"file": "./a/4.jpg", "captions": "more", "split": "test", "person": "17"},
    {"file": "6.jpg", "captions": ["z"], "split": "test", "person": "anna"},
]


def test_folder(tmp_path):
    dataset = open_dataset("folder", str(write_lines(tmp_path, FOLDER)))
    assert dataset.person_names == ("anna", "17")
    got = [(e.split, e.file, e.person, e.captions) for e in entries_of(dataset)]
    assert got == [
        ("train", "a/1.jpg", 0, ("a man", "in red")),
        ("train", "2.png", -1, ("one text",)),
        ("val", "3.jpg", 2, ("x",)),  # nobody named: a person of its own
        ("test", "a/4.jpg", 1, ("y", "more")),
        ("test", "5.jpg", 3, ()),
        ("test", "6.jpg", 0, ("z",)),
    ]
    assert dataset.train.pair_labels.tolist() == [0, 0, -1]
    assert dataset.train.read(0) == (tmp_path / "a/1.jpg").read_bytes()


def test_folder_without_splits_cannot_be_evaluated_by_accident(tmp_path):
    write_lines(tmp_path, FOLDER[:2])
    with pytest.raises(ValueError, match=r"no captions in split 'test'.*in: train"):
        open_dataset("folder", str(tmp_path)).evaluation_split("test")


def test_folder_names_fields_it_does_not_use(tmp_path, caplog):
    write_lines(tmp_path, [FOLDER[0] | {"persn": 1}, FOLDER[1] | {"persn": 2}])
    open_dataset("folder", str(tmp_path))
    assert "{'persn': 2}" in caplog.text


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"split": "dev"}, "line 2, field 'split': wanted train, val or test"),
        (
            {"person": 1.5},
            "line 2, field 'person': wanted a text or a whole number",
        ),
        (
            {"person": True},
            "wanted a text or a whole number, got bool True",
        ),
        ({"captions": 5}, "line 2, field 'captions': wanted a list of texts"),
        ({"file": "../1.jpg"}, "line 2, field 'file': wanted a relative path inside"),
        (
            {"file": "a//1.jpg"},
            "line 2, field 'person': wanted 'anna' as line 1 says of this file, got",
        ),
        (
            {"file": "a/1.jpg", "person": "anna", "split": "test"},
            "line 2, field 'split': wanted 'train' as line 1 says of this file",
        ),
    ],
)
def test_folder_names_the_bad_line(tmp_path, change, shown):
    lines = write_lines(tmp_path, FOLDER[:1]) / "captions.jsonl"
    lines.write_text("\n".join(json.dumps(e) for e in [FOLDER[0], FOLDER[1] | change]))
    with pytest.raises(AnnotationError) as caught:
        open_dataset("folder", str(tmp_path))
    assert str(lines) in str(caught.value) and shown in str(caught.value)


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (b'\n{"file": "1.jpg"', "line 2: wanted one JSON object"),
        (b"7", "line 1: wanted an object with fields, got int 7"),
        (b" \n\n", "wanted at least one line"),
        (b'{"file": "\xff"}', "wanted UTF-8"),
        (b"9" * 5000, "line 1: wanted one JSON object"),
        (b"{}\n" + b"[" * 200_000, "line 1, field 'file': wanted a text, got no such"),
    ],
    ids=["cut", "number", "empty", "not UTF-8", "digits", "deep"],
)
def test_folder_with_a_malformed_file(tmp_path, content, shown):
    (tmp_path / "captions.jsonl").write_bytes(content)
    with pytest.raises(AnnotationError, match=shown):
        open_dataset("folder", str(tmp_path))


def test_folder_without_captions_file(tmp_path):
    with pytest.raises(DatasetMissing, match=r"captions.jsonl: missing"):
        open_dataset("folder", str(tmp_path))


SMALL = {"identities": 2, "images_per_identity": 2, "test_identities": 1}


def test_synthetic_is_drawn_once_and_read_like_cuhk(tmp_path):
    root = tmp_path / "new" / "people"
    first = open_dataset("synthetic", str(root), seed=2, **SMALL)
    files = sorted(root.rglob("*"))
    written = [path.stat().st_mtime_ns for path in files]
    again = open_dataset("synthetic", str(root), seed=2, **SMALL)
    assert [path.stat().st_mtime_ns for path in files] == written
    assert (first.name, first.val) == ("synthetic", None)
    assert (len(first.train.images), len(first.test.images)) == (4, 2)
    assert first.train.pair_labels.tolist() == [0] * 4 + [1] * 4
    assert first.train.read(0)[:2] == b"\xff\xd8"  # a JPEG
    as_cuhk = open_dataset("cuhk_pedes", str(root))
    assert first.fingerprint == again.fingerprint == as_cuhk.fingerprint


def test_a_population_of_before_an_option_has_its_default(tmp_path):
    drawn = open_dataset("synthetic", str(tmp_path), seed=2, **SMALL)
    record = tmp_path / "population.json"
    options = json.loads(record.read_text())
    assert (options.pop("twins"), options.pop("omitted")) == (0, 0)
    record.write_text(json.dumps(options))
    again = open_dataset("synthetic", str(tmp_path), seed=2, **SMALL)
    assert again.fingerprint == drawn.fingerprint
    with pytest.raises(FileExistsError, match=r"omitted: there 0.0, wanted 0.5"):
        open_dataset("synthetic", str(tmp_path), seed=2, omitted=0.5, **SMALL)
    with pytest.raises(ValueError, match=r"wanted twins of 0 to 1, got nan"):
        open_dataset("synthetic", str(tmp_path), seed=2, twins=math.nan, **SMALL)


def test_synthetic_refuses_a_population_of_other_options(tmp_path):
    open_dataset("synthetic", str(tmp_path), seed=2, **SMALL)
    with pytest.raises(FileExistsError, match=r"seed: there 2, wanted 3"):
        open_dataset("synthetic", str(tmp_path), seed=3, **SMALL)
