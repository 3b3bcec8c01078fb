# SPDX-License-Identifier: Apache-2.0
"""TFDS: prepared data sets come back as exactly the same records and bytes."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data_pipeline.datasets import AnnotationError, DatasetMissing, open_dataset
from data_pipeline.datasets.published import LAYOUTS
from data_pipeline.datasets.tfds.__main__ import main as prepare
from tests.data_pipeline.tiny_sets import tiny_entries, write_layout, write_lines

CUHK = LAYOUTS["cuhk_pedes"]
# Enough for two shards to share a split.
ENTRIES = [
    entry | {"file_path": f"{copy}/{entry['file_path']}"}
    for copy in range(3)
    for entry in tiny_entries(CUHK)
]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A data set in CUHK's layout."""
    root = tmp_path_factory.mktemp("files")
    write_layout(root, CUHK, ENTRIES)
    return root


@pytest.fixture(scope="module", params=["array_record", "tfrecord"])
def prepared(request, root, tmp_path_factory) -> Path:
    """The data_dir of the same data set, prepared in each file format."""
    out = tmp_path_factory.mktemp(request.param)
    flags = [f"--manual_dir={root}", f"--data_dir={out}", "--num_shards=2"]
    assert prepare(["cuhk_pedes", *flags, f"--file_format={request.param}"]) == 0
    return out


def test_files_and_shards_give_equal_records(root, prepared):
    files = open_dataset("cuhk_pedes", str(root))
    shards = open_dataset("tfds:cuhk_pedes", str(prepared))
    assert (shards.name, shards.fingerprint) == (files.name, files.fingerprint)
    assert len(list(prepared.rglob("*train*-of-00002"))) == 2
    for a, b in zip(files.splits, shards.splits, strict=True):
        assert b.source is not None
        assert a.pairs == b.pairs
        assert [(i.file, i.person) for i in a.images] == [
            (i.file, i.person) for i in b.images
        ]
        backwards = range(len(a.images))[::-1]
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(b.read, backwards)) == [a.read(i) for i in backwards]


def test_shards_of_other_data_are_noticed(prepared, tmp_path):
    """Metadata that is consistent in itself but lists the pictures in another order."""
    shutil.copytree(prepared, tmp_path / "copy")
    path = tmp_path / "copy/cuhk_pedes/1.0.0/metadata.json"
    metadata = json.loads(path.read_text())
    first, second = metadata["entries"][:2]
    first[1], second[1] = second[1], first[1]
    path.write_text(json.dumps(metadata))
    with pytest.raises(AnnotationError, match=r"metadata.json: wanted records with"):
        open_dataset("tfds:cuhk_pedes", str(tmp_path / "copy"))

    other = write_layout(tmp_path / "other", CUHK, ENTRIES[::-1])
    out = tmp_path / "out"
    prepare(["cuhk_pedes", f"--manual_dir={other}", f"--data_dir={out}"])
    there = out / "cuhk_pedes/1.0.0/metadata.json"
    path.write_text(there.read_text())
    mixed = open_dataset("tfds:cuhk_pedes", str(tmp_path / "copy"))
    with pytest.raises(AnnotationError, match=r"record 0 of split 'train': wanted"):
        mixed.train.read(0)


def test_folder_keeps_names_and_pictures_without_person(tmp_path):
    lines = [
        {"file": "1.jpg", "captions": ["a", "b"], "person": "änna"},
        {"file": "2.jpg", "captions": []},
        {"file": "3.jpg", "captions": "c", "split": "test"},
    ]
    root, out = write_lines(tmp_path / "mine", lines), tmp_path / "out"
    prepare(["folder", f"--manual_dir={root}", f"--data_dir={out}"])
    files = open_dataset("folder", str(root))
    shards = open_dataset("tfds:folder", str(out))
    assert shards.fingerprint == files.fingerprint
    assert shards.person_names == files.person_names == ("änna",)
    assert shards.train.pair_labels.tolist() == [0, 0]
    assert shards.train.image_persons.tolist() == [0, -1]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_each_layout_has_a_builder(tmp_path, layout):
    write_layout(tmp_path, layout)
    out = tmp_path / "out"
    prepare([layout.name, f"--manual_dir={tmp_path}", f"--data_dir={out}"])
    shards = open_dataset(f"tfds:{layout.name}", str(out))
    assert shards.fingerprint == open_dataset(layout.name, str(tmp_path)).fingerprint


def test_not_prepared_says_how_to(tmp_path):
    with pytest.raises(DatasetMissing) as caught:
        open_dataset("tfds:rstp_reid", str(tmp_path))
    assert str(tmp_path / "rstp_reid/1.0.0/dataset_info.json") in str(caught.value)
    assert "data_pipeline.datasets.tfds rstp_reid --manual_dir" in str(caught.value)


def test_command_reports_and_repeats(tmp_path, capsys):
    flags = ["cuhk_pedes", f"--manual_dir={tmp_path}", f"--data_dir={tmp_path / 'out'}"]
    assert prepare(flags) == 2
    assert f"{tmp_path / 'reid_raw.json'}: missing" in capsys.readouterr().err
    folder = write_layout(tmp_path, CUHK)
    lost = folder / "imgs" / tiny_entries(CUHK)[3]["file_path"]
    lost.rename(folder / "away.jpg")
    assert prepare(flags) == 2
    assert str(lost) in capsys.readouterr().err
    (folder / "away.jpg").rename(lost)
    assert prepare(flags) == 0
    assert prepare(flags) == 0
    assert "already prepared, nothing done" in capsys.readouterr().out
    write_layout(tmp_path, CUHK, tiny_entries(CUHK)[1:])
    assert prepare(flags) == 2
    assert "prepared differently" in capsys.readouterr().err
    assert prepare([*flags, "--file_format=tfrecord"]) == 2
    assert "wanted tfrecord, got array_record" in capsys.readouterr().err


def test_nothing_that_features_json_names_is_imported(prepared, tmp_path, monkeypatch):
    """TFDS's own reader of folders would import it, to learn of its class."""
    shutil.copytree(prepared, tmp_path / "copy")
    (tmp_path / "guest.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    features = {"pythonClassName": "guest.Feature", "featuresDict": {"features": {}}}
    path = tmp_path / "copy/cuhk_pedes/1.0.0/features.json"
    assert path.is_file()
    path.write_text(json.dumps(features))
    data = open_dataset("tfds:cuhk_pedes", str(tmp_path / "copy"))
    assert len(data.train.read(0)) and not (tmp_path / "ran").exists()


def test_damaged_shards_are_unreadable_pictures(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*train*-of-*"):
        whole = path.read_bytes()
        path.write_bytes(bytes(len(whole)))
    data = open_dataset("tfds:cuhk_pedes", str(tmp_path / "copy"))
    with pytest.raises(OSError, match="shards of split 'train' are damaged"):
        data.train.read(0)
