# SPDX-License-Identifier: Apache-2.0
"""The check as a doctor: what it sees in data as people have it."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_pipeline import check
from data_pipeline.datasets import open_dataset
from data_pipeline.datasets.published import LAYOUTS
from data_pipeline.examine import UnreadablePicturesError, check_evaluation
from tests.data_pipeline.tiny_sets import tiny_entries, write_layout, write_lines

CUHK = LAYOUTS["cuhk_pedes"]


def lines(splits: str = "train train train val test") -> list[dict[str, Any]]:
    """Return a picture of each of a few people."""
    return [
        {"file": f"a/{i}.png", "captions": [f"man {i}"], "person": f"p{i}", "split": s}
        for i, s in enumerate(splits.split())
    ]


def checked(root: Path, capsys: pytest.CaptureFixture) -> tuple[int, dict[str, Any]]:
    """Return the status, which text and JSON must agree on, and the JSON report."""
    status = check.main([str(root)])
    assert capsys.readouterr().out.isascii()
    assert check.main([str(root), "--json"]) == status
    (report,) = json.loads(capsys.readouterr().out)["data_sets"]
    assert report["sound"] == (status == 0)
    return status, report


def kinds(report: dict[str, Any]) -> dict[str, int]:
    return {each["kind"]: each["count"] for each in report["findings"]}


def test_a_plain_set_is_sound_and_stays_as_it_is(tmp_path, capsys):
    write_lines(tmp_path, lines())
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    status, report = checked(tmp_path, capsys)
    assert (status, report["findings"], report["bad"]) == (0, [], [])
    assert report["splits"]["train"] == {"ids": 3, "images": 3, "captions": 3}
    assert report["pictures"]["formats"] == {"PNG": 5}
    assert report["pictures"]["heights"] == [12, 12]
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_a_terminal_sees_progress(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert check.main([str(write_lines(tmp_path, lines()))]) == 0
    said = capsys.readouterr()
    assert said.err.startswith("\rfolder: 1 of 5 pictures (20%)")
    assert said.err.endswith("\r\033[K")
    assert "5 decoded" in said.out


def test_nothing_is_drawn(tmp_path, capsys):
    assert check.main([str(tmp_path / "new"), "--name", "synthetic"]) == 1
    assert not (tmp_path / "new").exists()


def test_a_leak_is_an_error_and_the_rest_are_warnings(tmp_path, capsys):
    rows = lines()
    rows[3]["captions"], rows[4]["person"] = [" "], "nan"
    status, report = checked(write_lines(tmp_path, rows), capsys)
    assert (status, kinds(report)) == (0, {"empty-captions": 1, "placeholder": 1})
    rows[4]["person"] = "p0"
    status, report = checked(write_lines(tmp_path, rows), capsys)
    assert (status, kinds(report)["leak"]) == (1, 1)


def test_captions_are_measured_against_the_context(tmp_path, capsys):
    rows = lines()
    rows[0]["captions"] = ["red " * 30]
    write_lines(tmp_path, rows)
    assert kinds(checked(tmp_path, capsys)[1]) == {}
    assert check.main([str(tmp_path), "--context-length=16"]) == 0
    assert "cut to its 16 positions: 1 of 5" in capsys.readouterr().out
    assert check.main([str(tmp_path), "--tokenizer=/nowhere"]) == 2
    assert "wanted 'clip' or a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "there"),
    [
        ("imgs/{}", "{}"),
        ("CUHK-PEDES/imgs/{}", "{}"),
        ("{}", "CAM_0/000.JPG"),
        ("cam_0/000.png", "{}"),
        ("000.jpg", "{}"),
    ],
)
def test_a_near_file_is_named(tmp_path, capsys, said, there):
    entries = tiny_entries(CUHK)
    folder = write_layout(tmp_path, CUHK, entries) / "imgs"
    name = entries[0]["file_path"]
    (folder / there.format(name)).parent.mkdir(exist_ok=True)
    (folder / name).rename(folder / there.format(name))
    entries[0]["file_path"] = said.format(name)
    (folder.parent / "reid_raw.json").write_text(json.dumps(entries))
    status, report = checked(tmp_path, capsys)
    assert status == 1
    wanted = f"missing: did you mean {there.format(name)}?"
    assert [each["reason"] for each in report["bad"]] == [wanted]


def test_what_is_near_to_several_files_or_to_none_is_missing(tmp_path, capsys):
    rows = lines()
    rows[0]["file"], rows[1]["file"] = "b/1.png", "c/1.png"
    write_lines(tmp_path, rows)
    for file in ("1.png", "d/2.png"):
        changed = [rows[0] | {"file": file}, *rows[1:]]
        (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, changed)))
        assert checked(tmp_path, capsys)[1]["bad"][0]["reason"] == "missing"


def test_a_folder_that_never_arrived_is_one_line(tmp_path, capsys):
    rows = lines("train " * 80 + "test")
    for i, row in enumerate(rows[:60]):
        row["file"] = f"b/{i}.png"
    write_lines(tmp_path, rows)
    for row in rows[:60]:
        (tmp_path / row["file"]).unlink()
    assert check.main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert f"error: all of {tmp_path / 'b'} missing: 60 pictures" in out
    assert "and 10 more; --json lists all" in out
    assert len(checked(tmp_path, capsys)[1]["bad"]) == 60


def test_odd_pictures_are_counted_by_kind(tmp_path, capsys):
    write_lines(tmp_path, lines())
    picture = Image.open(tmp_path / "a/0.png").convert("RGBA")
    picture.save(tmp_path / "a/1.png", icc_profile=b"rubbish")
    Image.new("I;16", (6, 9), 4000).save(tmp_path / "a/2.png")
    (tmp_path / "a/3.png").write_bytes((tmp_path / "a/2.png").read_bytes())
    whole = (tmp_path / "a/4.png").read_bytes()
    (tmp_path / "a/4.png").write_bytes(
        whole[:33] + b"\0\0\0\1tEXtx\0\0\0\0" + whole[33:]
    )
    status, report = checked(tmp_path, capsys)
    assert (status, kinds(report)) == (
        0,
        {
            "transparent-pictures": 1,
            "ignored-profiles": 1,
            "deep-grey": 2,
            "mended-pictures": 1,
            "identical-files-across-splits": 1,
        },
    )
    assert report["pictures"]["heights"] == [9, 12]


def test_pipes_do_not_block_and_names_are_escaped(tmp_path, capsys):
    rows = lines()
    rows[0]["file"] = "\x1b]0;x\x07\u202e.png"
    rows[1]["person"] = "\x1b[2J"
    rows[2]["person"] = "\x1b[2j"
    write_lines(tmp_path, rows)
    (tmp_path / rows[0]["file"]).unlink()
    os.mkfifo(tmp_path / rows[0]["file"])
    status, report = checked(tmp_path, capsys)
    assert status == 1 and "no regular file" in report["bad"][0]["reason"]
    assert report["bad"][0]["path"].endswith(r"\x1b]0;x\x07\u202e.png")
    assert kinds(report)["similar-names"] == 1


@pytest.mark.parametrize("root", ["", "a\0b", os.devnull])
def test_roots_that_are_none(root, capsys):
    assert check.main([root]) == 1
    assert check.main([root, "--name=cuhk_pedes"]) == 1


def test_an_evaluation_names_all_pictures_that_it_would_miss(tmp_path):
    rows = lines("train test test test")
    dataset = open_dataset("folder", str(write_lines(tmp_path, rows)))
    check_evaluation(dataset, ["test"])
    (tmp_path / "a/0.png").unlink()  # training has limits of its own
    check_evaluation(dataset, ["test"])
    (tmp_path / "a/1.png").write_bytes(b"")
    (tmp_path / "a/3.png").rename(tmp_path / "a/3.PNG")
    with pytest.raises(UnreadablePicturesError, match="2 of 3 pictures") as caught:
        check_evaluation(dataset, ["test"])
    text = str(caught.value)
    assert "a/1.png: unreadable: 0 bytes that are no picture" in text
    assert "a/3.png: missing: did you mean a/3.PNG?" in text
    with pytest.raises(ValueError, match="no captions in split 'val'"):
        check_evaluation(dataset, ["val"])
