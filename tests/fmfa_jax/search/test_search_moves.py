# SPDX-License-Identifier: Apache-2.0
"""Galleries that move, lose their disk, or are made of links."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmfa_jax import search
from fmfa_jax.search.__main__ import main
from fmfa_jax.search.gallery import is_gone, list_gallery
from fmfa_jax.search.store import SearchError
from tests.fmfa_jax.search.indexes import SMALL, content, same


@pytest.fixture
def made(gallery, encoder, tmp_path, counting):
    """An index of the gallery; what is embedded from here on is counted."""
    search.index_gallery(gallery, tmp_path / "people.index", encoder, **SMALL)
    counting.clear()
    return tmp_path / "people.index"


def files_of(gallery: Path) -> list[Path]:
    return sorted(path for path in gallery.rglob("*.jpg"))


@pytest.mark.parametrize("way", ["gone", "empty"])
def test_a_gallery_that_is_away_costs_no_embeddings(
    gallery, made, encoder, way, capsys
):
    before = content(made)
    away = gallery.rename(gallery.with_name("away"))
    if way == "empty":  # a mount point
        gallery.mkdir()
    assert main(["remove", str(made), "--missing"]) == 2
    assert "--gallery" in capsys.readouterr().err
    if way == "empty":
        assert main(["add", str(made)]) == 0
        assert "which is all; is the gallery's disk there?" in capsys.readouterr().out
    assert same(content(made), before)
    shutil.rmtree(gallery, ignore_errors=True)
    away.rename(gallery)
    files_of(gallery)[0].unlink()
    assert main(["remove", str(made), "--missing"]) == 0
    assert len(content(made)) == 23
    shutil.rmtree(gallery)
    assert main(["remove", str(made), "--even-all"]) == 2
    assert main(["remove", str(made), "--missing", "--even-all"]) == 0
    assert search.read_record(made).rows == 0


def test_a_gallery_that_has_moved(gallery, made, encoder, tmp_path, counting, capsys):
    before = content(made)
    new = gallery.rename(tmp_path / "there")
    query = ["query", str(made), "a man", "--top", "3"]
    sheet = ["--sheet", str(tmp_path / "found.png")]
    assert main([*query, *sheet]) == 0, "a lost picture leaves a gap"
    assert capsys.readouterr().out.count("(no longer there)") == 3
    gaps = np.asarray(Image.open(tmp_path / "found.png"))
    assert main([*query, *sheet, "--gallery", str(new)]) == 0
    assert "no longer there" not in capsys.readouterr().out
    assert (np.asarray(Image.open(tmp_path / "found.png")) != gaps).mean() > 0.05
    with pytest.raises(SearchError, match=r"moved: add \S+ --gallery"):
        search.index_gallery(new, made, encoder)
    (tmp_path / "other").mkdir()
    for wrong in (tmp_path / "other", tmp_path / "none"):
        with pytest.raises(SearchError, match="--gallery: "):
            search.add(made, encoder, gallery=wrong)
    change = search.add(made, encoder, gallery=new, **SMALL)
    assert (change.added, change.gone, change.rows) == (0, 0, 24)
    assert search.read_record(made).gallery == str(new)
    assert same(content(made), before) and not counting
    assert search.Gallery(made).read(0)


def test_a_copied_gallery_is_read_but_not_embedded(
    gallery, made, encoder, tmp_path, counting
):
    """On another machine all times of inodes differ, and here those of files, too."""
    before = content(made)
    new = shutil.copytree(gallery, tmp_path / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(gallery)
    change = search.add(made, encoder, gallery=new, **SMALL)
    assert (change.added, change.removed, change.rows) == (0, 0, 24)
    assert same(content(made), before) and not counting
    stamps = {s.file: s for s in list_gallery(new).pictures}
    known = [s for shard in search.Gallery(made).shards for s in shard.stamps()]
    assert all(stamps[s.file].ctime_ns == s.ctime_ns for s in known)


def test_known_content_under_a_new_name_keeps_its_embedding(
    gallery, made, encoder, counting, capsys
):
    before = content(made)
    first, second, *_ = files_of(gallery)
    folder = first.parent
    renamed = folder.rename(folder.with_name("renamed"))
    shutil.copy(second if second.exists() else files_of(gallery)[-1], gallery / "b.jpg")
    change = search.add(made, encoder, **SMALL)
    assert change.gone == 0 and change.rows == 25 and not counting
    assert change.reused == change.added == len(files_of(renamed)) + 1
    after = content(made)
    assert after.keys() == {str(p.relative_to(gallery)) for p in files_of(gallery)}
    for file, row in before.items():
        now = file.replace(f"{folder.name}/", "renamed/")
        np.testing.assert_array_equal(after[now], row)


def test_files_that_change_places_are_noticed(gallery, made, encoder, counting):
    """Of one size and one time, as from an archive; a rename keeps both."""
    names = ("1.bmp", "2.bmp")
    for name, source in zip(names, files_of(gallery), strict=False):
        Image.open(source).convert("RGB").resize((64, 128)).save(gallery / name)
        os.utime(gallery / name, (1.7e9, 1.7e9))
    search.add(made, encoder, **SMALL)
    before = content(made)
    counting.clear()
    for old, new in (("1.bmp", "x"), ("2.bmp", "1.bmp"), ("x", "2.bmp")):
        (gallery / old).rename(gallery / new)
    change = search.add(made, encoder, **SMALL)
    after = content(made)
    np.testing.assert_array_equal(after["1.bmp"], before["2.bmp"])
    np.testing.assert_array_equal(after["2.bmp"], before["1.bmp"])
    assert (change.reused, change.removed, change.rows) == (2, 2, 26) and not counting
    assert search.add(made, encoder, **SMALL).reused == 0


def test_a_bad_file_that_changes_with_its_size_and_time_is_tried_again(
    gallery, made, encoder
):
    good = (gallery / files_of(gallery)[0]).read_bytes()
    for name, data in (("a.jpg", bytes(len(good))), ("b.jpg", good)):
        (gallery / name).write_bytes(data)
        os.utime(gallery / name, (1.7e9, 1.7e9))
    assert [bad.file for bad in search.add(made, encoder, **SMALL).bad] == ["a.jpg"]
    os.replace(gallery / "b.jpg", gallery / "a.jpg")
    assert search.add(made, encoder, **SMALL).bad == ()
    assert "a.jpg" in content(made)


def links(gallery: Path, outside: Path) -> None:
    """A gallery of links: to folders within, around, and out of it."""
    (gallery / ".store").mkdir()
    (gallery / ".store" / "deep").mkdir()
    shutil.copy(files_of(gallery)[0], gallery / ".store" / "deep" / "hidden.jpg")
    (gallery / "within").symlink_to(gallery / ".store")
    (gallery / "again").symlink_to(".store")
    (gallery / ".store" / "loop").symlink_to(gallery)
    (gallery / "self").symlink_to("self")
    (gallery / "outside").symlink_to(outside)


def test_links_to_folders_are_followed_inside_and_named_otherwise(
    gallery, encoder, tmp_path, capsys
):
    outside = tmp_path / "disk"
    outside.mkdir()
    shutil.copy(files_of(gallery)[0], outside / "secret.jpg")
    links(gallery, outside)
    plain = list_gallery(gallery)
    assert len(plain.pictures) == 24
    assert {each.folder for each in plain.skipped} == {"within", "again", "outside"}
    entered = list_gallery(gallery, follow_links=True)
    (added,) = {s.file for s in entered.pictures} - {s.file for s in plain.pictures}
    reasons = {each.folder: each.reason for each in entered.skipped}
    first = added.split("/")[0]
    assert first in ("within", "again") and added == f"{first}/deep/hidden.jpg"
    assert "another link leads to" in reasons.pop(
        {"within", "again"} - {first} and ("again" if first == "within" else "within")
    )
    assert "leads out of the gallery" in reasons.pop("outside")
    assert reasons == {f"{first}/loop": "a link to a folder that it lies in"}
    change = search.index_gallery(
        gallery, tmp_path / "linked", encoder, follow_links=True, **SMALL
    )
    assert change.rows == 25 and change.skipped and change.others == 1


def test_an_index_of_no_picture_is_no_success(
    gallery, model_file, population, tmp_path, capsys
):
    """Six links to pictures on another disk, then a link to their folder alone."""
    linked, alone = tmp_path / "linked", tmp_path / "alone"
    linked.mkdir()
    alone.mkdir()
    for path in files_of(gallery)[:6]:
        (linked / path.name).symlink_to(path)
    (alone / "cam\x1b[2J").symlink_to(gallery)
    tokenizer = str(population / "tokenizer")
    model = ["--model", str(model_file), "--tokenizer", tokenizer, "--batch-size", "8"]
    assert main(["index", str(linked), "--out", str(tmp_path / "a"), *model]) == 2
    said = capsys.readouterr()
    assert "not one of 6 files could be used" in said.err
    assert said.out.count("leads out of the gallery") == 6
    assert main(["index", str(alone), "--out", str(tmp_path / "b"), *model]) == 2
    said = capsys.readouterr().err
    assert r"cam\x1b[2J: a link that leads out of the gallery" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_folder_is_named(gallery, made, encoder):
    folder = files_of(gallery)[0].parent
    folder.chmod(0)
    try:
        (skipped,) = list_gallery(gallery).skipped
    finally:
        folder.chmod(0o755)
    assert (skipped.folder, skipped.reason) == (folder.name, "Permission denied")


def test_a_folder_that_cannot_be_listed_is_named(gallery, monkeypatch):
    """As above, for whoever may read everything."""
    folder, listed = files_of(gallery)[0].parent, os.scandir

    def scandir(path):
        if Path(path) == folder:
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    (skipped,) = list_gallery(gallery).skipped
    assert skipped.folder == folder.relative_to(gallery).as_posix()
    assert skipped.reason == "Permission denied"


def test_what_cannot_be_reached_is_not_gone(gallery):
    """As behind a loop of links, or on a disk that answers with errors."""
    (gallery / "loop").symlink_to("loop")
    assert not is_gone(gallery, "loop/a.jpg")
    assert is_gone(gallery, "a.jpg") and is_gone(gallery, "a/b.jpg")
    file = files_of(gallery)[0]
    assert is_gone(gallery, f"{file.relative_to(gallery)}/b.jpg")
    assert not is_gone(gallery, str(file.relative_to(gallery)))


def test_a_sentence_that_is_cut_is_told(index, searcher, capsys):
    long = "a person who walks along the street and looks around and " * 3
    assert main(["query", str(index), "a man in red", "--json"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["query", str(index), long + "wears red", "--json"]) == 0
    said = capsys.readouterr()
    words = searcher.cut(long)
    note = f"note: the model reads the first {words} words of the sentence; the rest"
    assert said.err == f"{note} was cut off\n"
    assert all(hit["there"] for hit in json.loads(said.out)["results"])
    read = " ".join(long.split()[: words - 1])
    assert searcher.cut(read) is None
    changed = " ".join([*long.split()[:words], "and", "something", "else"])
    np.testing.assert_array_equal(searcher.vector(long), searcher.vector(changed))
