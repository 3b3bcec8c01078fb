# SPDX-License-Identifier: Apache-2.0
"""Files appear whole under their name, or not at all."""

import json
import math
import os

import numpy as np
import pytest

from fmfa_jax import files


def test_a_failed_write_leaves_the_old_file_and_no_draft(tmp_path):
    path = tmp_path / "a" / "x.txt"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError, match="half"), files.writing(path) as stream:
        stream.write("new")
        raise RuntimeError("half way")
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["x.txt"]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    files.write_text(path, "old")

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["config.json"]


def test_a_draft_of_a_killed_process_is_no_obstacle(tmp_path):
    (tmp_path / ".x.unfinished").mkdir()
    (tmp_path / ".x.unfinished" / "y").write_text("half")
    files.write_text(tmp_path / "x", "whole")
    assert os.listdir(tmp_path) == ["x"]


def test_a_folder_appears_at_one_stroke(tmp_path):
    with files.replacing(tmp_path / "folder") as draft:
        draft.mkdir()
        (draft / "inner").mkdir()
        (draft / "inner" / "file").write_text("1")
        assert not (tmp_path / "folder").exists()
    assert (tmp_path / "folder" / "inner" / "file").read_text() == "1"
    with pytest.raises(OSError), files.replacing(tmp_path / "folder") as draft:
        draft.mkdir()
    assert os.listdir(tmp_path) == ["folder"]


def test_json_is_valid_and_plain(tmp_path):
    value = {"size": (2, 1), "bad": math.nan, "path": tmp_path, 3: np.float32(0.5)}
    files.write_json(tmp_path / "a" / "config.json", value)
    text = (tmp_path / "a" / "config.json").read_text()
    expected = {"size": [2, 1], "bad": None, "path": str(tmp_path), "3": 0.5}
    assert json.loads(text) == expected


def test_a_table_keeps_its_columns_and_refuses_no_name(tmp_path):
    rows = [("a b.jpg", "bad\tfile\nend")]
    files.write_table(tmp_path / "t.tsv", ("file", "error"), rows)
    assert (tmp_path / "t.tsv").read_text() == "file\terror\na b.jpg\tbad file end\n"
    files.write_table(tmp_path / "x.tsv", ("file",), [["caf\udce9\t1.jpg"]])
    assert (tmp_path / "x.tsv").read_text() == "file\ncaf\\udce9 1.jpg\n"
