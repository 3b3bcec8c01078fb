# SPDX-License-Identifier: Apache-2.0
"""Files appear whole under their name, or not at all."""

import json
import os

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


def test_json_is_valid_and_names_are_never_refused(tmp_path):
    files.write_json(tmp_path / "x.json", {"loss": float("nan"), "path": tmp_path})
    assert json.loads((tmp_path / "x.json").read_text()) == {
        "loss": None,
        "path": str(tmp_path),
    }
    files.write_table(tmp_path / "x.tsv", ("file",), [["caf\udce9\t1.jpg"]])
    assert (tmp_path / "x.tsv").read_text() == "file\ncaf\\udce9 1.jpg\n"
