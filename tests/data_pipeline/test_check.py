# SPDX-License-Identifier: Apache-2.0
"""The check: what it finds, counts and names, and its exit status."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline import check
from data_pipeline.datasets.layout import Counts
from data_pipeline.datasets.published import LAYOUTS
from tests.data_pipeline.tiny_sets import tiny_entries, write_layout, write_lines

CUHK = LAYOUTS["cuhk_pedes"]
TINY = {"train": Counts(2, 4, 6), "val": Counts(1, 2, 3), "test": Counts(1, 2, 3)}


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_all_sets_under_a_root_are_found_and_counted(tmp_path, capsys):
    for layout in LAYOUTS.values():
        write_layout(tmp_path, layout)
    write_lines(tmp_path, [{"file": "1.jpg", "captions": ["a", "b"]}])
    assert check.detect(str(tmp_path)) == [*LAYOUTS, "folder"]
    assert check.main([str(tmp_path)]) == 0  # differing counts are not a failure
    out = capsys.readouterr().out
    for name, layout in LAYOUTS.items():
        assert f"{name} at {tmp_path / layout.folder}\n" in out
    assert ["train", "2", "4", "6", "11003/34054/68126", "DIFFERENT"] in rows(out)
    assert ["test", "2", "4", "6", "1000/19848/19848", "DIFFERENT"] in rows(out)
    assert ["train", "0", "1", "2", "-"] in rows(out)  # the folder: nobody is named
    assert out.count("(unverified)") == 1
    assert out.count("8 pictures: 8 decoded, 0 missing or unreadable") == len(LAYOUTS)


def test_equal_and_absent_splits(tmp_path, capsys, monkeypatch):
    published = replace(CUHK, published=TINY)
    monkeypatch.setitem(check.LAYOUTS, "cuhk_pedes", published)
    entries = tiny_entries(CUHK)
    folder = write_layout(tmp_path, CUHK, entries)
    check.main([str(folder)])
    assert capsys.readouterr().out.count("  equal\n") == 3
    write_layout(tmp_path, CUHK, [e for e in entries if e["split"] != "val"])
    check.main([str(folder)])
    out = capsys.readouterr().out
    assert ["val", "0", "0", "0", "1/2/3", "DIFFERENT"] in rows(out)
    assert out.count("  equal\n") == 2


def test_a_drawn_population_is_not_compared(tmp_path, capsys):
    folder = write_layout(tmp_path, CUHK)
    (tmp_path / "population.json").write_text("{}")
    assert check.main([str(tmp_path)]) == 0
    assert check.main([str(folder)]) == 0
    assert "DIFFERENT" not in capsys.readouterr().out


def spoil(folder: Path) -> dict[str, str]:
    """Damage five pictures in five ways; return what the report must say."""
    paths = [folder / "imgs" / e["file_path"] for e in tiny_entries(CUHK)]
    paths[0].unlink()
    paths[1].write_bytes(paths[1].read_bytes()[:-100])
    paths[2].write_bytes(b"")
    paths[4].write_text("<html>not a picture</html>")
    paths[7].unlink()
    paths[7].mkdir()
    kinds = {0: "missing", 1: "unreadable", 2: "unreadable", 4: "unreadable"}
    kinds[7] = "unreadable"
    return {str(paths[number]): kind for number, kind in kinds.items()}


def test_each_bad_picture_is_named(tmp_path, capsys):
    wanted = spoil(write_layout(tmp_path, CUHK))
    assert check.main([str(tmp_path), "--name", "cuhk_pedes"]) == 1
    out = capsys.readouterr().out
    named = [line.split(maxsplit=2) for line in out.splitlines() if ".jpg" in line]
    assert {path.rstrip(":"): why.split(":")[0] for _, path, why in named} == wanted
    assert [split for split, _, _ in named] == ["train"] * 3 + ["val", "test"]
    assert "8 pictures: 3 decoded, 5 missing or unreadable" in out


def test_one_missing_picture_is_enough_to_fail(tmp_path, capsys):
    folder = write_layout(tmp_path, CUHK)
    (folder / "imgs" / tiny_entries(CUHK)[6]["file_path"]).unlink()
    assert check.main([str(tmp_path)]) == 1
    assert "8 pictures: 7 decoded, 1 missing" in capsys.readouterr().out


def test_a_malformed_set_does_not_hide_the_others(tmp_path, capsys):
    write_layout(tmp_path, CUHK)
    (tmp_path / "RSTPReid").mkdir()
    icfg = write_layout(tmp_path, LAYOUTS["icfg_pedes"])
    (icfg / "ICFG-PEDES.json").write_text("[{}]")
    assert check.main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "8 pictures: 8 decoded" in out
    assert "icfg_pedes: " in out and "entry 0, field 'split'" in out
    assert "rstp_reid: RSTPReid is not under" in out


def test_nothing_there_and_unknown_names(tmp_path, capsys):
    assert check.main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "CUHK-PEDES/reid_raw.json" in out and "captions.jsonl" in out
    assert check.main([str(tmp_path), "--name=cuhk"]) == 2
    assert "did you mean cuhk_pedes" in capsys.readouterr().err


@pytest.mark.parametrize(("spoiled", "status"), [(False, 0), (True, 1)])
def test_command(tmp_path, spoiled, status):
    folder = write_layout(tmp_path, CUHK)
    if spoiled:
        spoil(folder)
    done = subprocess.run(
        [sys.executable, "-m", "data_pipeline.check", str(tmp_path)],
        capture_output=True,
        cwd=Path(__file__).parents[2],
        text=True,
    )
    assert (done.returncode, done.stderr) == (status, "")
    assert done.stdout.startswith(f"cuhk_pedes at {folder}")
