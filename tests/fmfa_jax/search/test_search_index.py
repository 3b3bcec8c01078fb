# SPDX-License-Identifier: Apache-2.0
"""Indexes: what they hold, how they change, and that no crash harms them."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from data_pipeline import images
from fmfa_jax import search
from fmfa_jax.search import gallery as files
from fmfa_jax.search import query, store, writer
from fmfa_jax.search.embed import Embedder, by_all_devices
from fmfa_jax.search.encoder import spread
from fmfa_jax.search.store import SearchError
from fmfa_jax.weights import WeightsError
from tests.fmfa_jax.search.indexes import SMALL, content, same

ROOT = Path(__file__).parents[3]


def test_an_index_holds_each_picture_as_the_model_sees_it(
    index, encoder, shared_gallery
):
    found = content(index)
    files = [p for p in shared_gallery.rglob("*.jpg") if not p.is_symlink()]
    assert sorted(found) == sorted(str(p.relative_to(shared_gallery)) for p in files)
    assert len(found) == 24
    for file, row in found.items():
        pixels = images.load(shared_gallery / file, encoder.image_size)
        wanted = np.asarray(encoder.model.encode_image(pixels[None]))[0]
        np.testing.assert_allclose(row, wanted / np.linalg.norm(wanted), atol=1e-5)


def test_several_devices_embed_what_one_does(encoder, shared_gallery):
    """As accelerators do of their own accord; a CPU is one, so it is asked for."""
    model = spread(encoder, jax.devices()[:4])
    files = sorted(p for p in shared_gallery.rglob("*.jpg") if not p.is_symlink())
    pixels = np.stack([images.load(file, encoder.image_size) for file in files[:8]])
    parts = model.model.encode_image(jax.device_put(pixels, model.rows))
    assert [shard.data.shape[0] for shard in parts.addressable_shards] == [2] * 4
    np.testing.assert_allclose(
        model.pictures(pixels), encoder.pictures(pixels), atol=1e-5
    )
    assert by_all_devices(Embedder(encoder, 8, 8)).model is encoder


def test_bad_files_are_counted_and_listed(index, shared_gallery):
    manifest = search.read_record(index)
    assert {bad.file for bad in manifest.bad} == {"broken.png", "link.jpg"}
    listed = (index / "bad_images.tsv").read_text()
    assert "broken.png\t10 bytes that are no picture" in listed
    assert "leads out of the gallery" in listed


def test_pipes_folders_and_dangling_links_are_bad_files_and_stay_so(
    gallery, encoder, tmp_path
):
    """A pipe is not waited for; what cannot be read is not tried at every call."""
    os.mkfifo(gallery / "pipe.jpg")
    (gallery / "nowhere.jpg").symlink_to("nothing.jpg")
    (gallery / "folder.jpg").mkdir()
    first = search.index_gallery(gallery, tmp_path / "index", encoder, **SMALL)
    assert {bad.file for bad in first.met} == {"pipe.jpg", "nowhere.jpg"}
    reasons = {bad.file: bad.reason for bad in first.bad}
    assert "no regular file" in reasons["pipe.jpg"]
    assert reasons["nowhere.jpg"] == "No such file or directory"
    for _ in range(2):
        again = search.add(tmp_path / "index", encoder, **SMALL)
        assert again.met == () and again.bad == first.bad
    assert search.remove(tmp_path / "index").bad == first.bad
    (gallery / "pipe.jpg").unlink()
    (gallery / "nowhere.jpg").unlink()
    assert search.remove(tmp_path / "index").bad == ()


def test_an_index_records_model_preprocessing_and_tokenizer(
    index, model_file, population
):
    manifest = search.read_record(index)
    digest = search.open_model(model_file, tokenizer=str(population / "tokenizer"))
    assert manifest.model == digest.record
    assert manifest.preprocessing == store.PREPROCESSING
    assert manifest.tokenizer == "tokenizer"
    for name in ("vocab.json", "merges.txt"):
        copy, original = index / "tokenizer" / name, population / "tokenizer" / name
        assert copy.read_bytes() == original.read_bytes()


def test_new_and_changed_pictures_are_added_others_left(
    gallery, encoder, tmp_path, counting
):
    out = tmp_path / "index"
    some = sorted(gallery.rglob("*.jpg"))
    Image.new("RGB", (30, 60), "red").save(gallery / "first.jpg")
    search.index_gallery(gallery, out, encoder, **SMALL)
    before = content(out)
    Image.new("RGB", (30, 60), "blue").save(gallery / "first.jpg")
    Image.new("RGB", (30, 60), "green").save(gallery / "second.jpg")
    some[0].unlink()
    counting.clear()
    change = search.add(out, encoder, **SMALL)
    assert (change.added, change.removed, change.gone, change.rows) == (2, 1, 1, 26)
    assert counting == [8]
    after = content(out)
    assert after.keys() - before.keys() == {"second.jpg"}
    kept = before.keys() - {"first.jpg"}
    assert same({f: after[f] for f in kept}, {f: before[f] for f in kept})
    assert not np.allclose(after["first.jpg"], before["first.jpg"])
    counting.clear()
    assert search.add(out, encoder).added == 0 and not counting


def test_what_is_removed_stays_out_until_it_is_added_by_name(
    gallery, encoder, tmp_path
):
    out = tmp_path / "index"
    search.index_gallery(gallery, out, encoder)
    everything = content(out)
    folder = next(iter(everything)).split("/")[0]
    inside = {file for file in everything if file.startswith(f"{folder}/")}
    assert 0 < len(inside) < 24
    assert search.remove(out, [folder]).removed == len(inside)
    rest = {file: row for file, row in everything.items() if file not in inside}
    assert same(content(out), rest)
    change = search.add(out, encoder)
    assert (change.added, change.excluded) == (0, len(inside))
    assert search.add(out, encoder, [gallery / folder]).added == len(inside)
    assert content(out).keys() == everything.keys()
    (gallery / sorted(inside)[0]).unlink()
    assert search.remove(out).removed == 1
    with pytest.raises(SearchError, match="no picture 'nobody"):
        search.remove(out, ["nobody.jpg"])
    with pytest.raises(SearchError, match="not in the gallery"):
        search.remove(out, ["../outside.jpg"])


def test_a_killed_index_continues_and_ends_like_a_whole_one(
    gallery, model_file, population, encoder, tmp_path, counting
):
    out, tokenizer = tmp_path / "index", str(population / "tokenizer")
    script = Path(__file__).with_name("killed_writer.py")
    command = [sys.executable, str(script), gallery, out, model_file, tokenizer]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(content(out)) == 8, "what was saved is a smaller index"
    search.index_gallery(gallery, out, encoder, **SMALL)
    assert len(counting) == 2, "24 pictures, of which 8 were saved"
    whole = tmp_path / "whole"
    search.index_gallery(gallery, whole, encoder, **SMALL)
    assert same(content(out), content(whole))
    assert len(list((out / "shards").iterdir())) == 1


class Crash(BaseException):
    """Stands for a process that ends here and now."""


def test_a_crash_at_any_replacement_leaves_the_last_good_index(
    gallery, encoder, tmp_path, monkeypatch
):
    out = tmp_path / "index"
    search.index_gallery(gallery, out, encoder, **SMALL)
    before = content(out)
    for shade in range(10):
        Image.new("RGB", (30, 60), (20 * shade, 0, 0)).save(gallery / f"{shade}.png")
    wanted = before.keys() | {f"{shade}.png" for shade in range(10)}
    replaced = os.replace
    for crash_at in range(100):
        trial = shutil.copytree(out, tmp_path / f"trial_{crash_at}")
        calls = iter(range(100))

        def crashing(source, target, calls=calls, crash_at=crash_at):
            if next(calls) == crash_at:
                raise Crash
            replaced(source, target)

        monkeypatch.setattr(os, "replace", crashing)
        try:
            search.add(trial, encoder, **SMALL)
            break
        except Crash:
            now = content(trial)
            assert same({f: now[f] for f in before}, before)
            assert before.keys() <= now.keys() <= wanted
        finally:
            monkeypatch.setattr(os, "replace", replaced)
        search.add(trial, encoder, **SMALL)
        assert content(trial).keys() == wanted
        assert len(list((trial / "shards").iterdir())) == 1
    # Of each of the two commits: the shard, the record, the list of bad files.
    assert crash_at == 6


def test_a_query_or_addition_with_another_model_is_refused(
    index, other_model_file, gallery, population, tmp_path
):
    with pytest.raises(SearchError, match="not the model that this index"):
        search.open_searcher(index, model=str(other_model_file))
    other = search.open_model(other_model_file, tokenizer=str(population / "tokenizer"))
    manifest = search.read_record(index)
    with pytest.raises(SearchError, match="another index already"):
        search.index_gallery(manifest.gallery, index, other)
    with pytest.raises(SearchError, match="storage: there float32, asked for float16"):
        same_model = replace(other, record=manifest.model)
        search.index_gallery(manifest.gallery, index, same_model, storage="float16")
    with pytest.raises(SearchError, match="another model"):
        search.add(index, other)


def test_an_index_that_was_begun_with_another_model_is_refused(
    gallery, encoder, other_model_file, population, tmp_path
):
    out = tmp_path / "index"

    def stop(done, wanted, bad):
        if done:
            raise Crash

    with pytest.raises(Crash):
        search.index_gallery(gallery, out, encoder, **SMALL, progress=stop)
    tokenizer = str(population / "tokenizer")
    other = search.open_model(other_model_file, tokenizer=tokenizer)
    there, asked = encoder.record.sha256, other.record.sha256
    reason = f"another index already.* model: there {there}, asked for {asked}"
    with pytest.raises(SearchError, match=reason):
        search.index_gallery(gallery, out, other)


def test_a_model_that_has_moved_is_asked_for(index, model_file, tmp_path):
    manifest = search.read_record(index)
    moved = replace(manifest, model=replace(manifest.model, path=str(tmp_path / "no")))
    with pytest.raises(SearchError, match="say where it lies"):
        search.reopen_model(index, moved)
    found = search.reopen_model(index, moved, str(model_file))
    assert found.model.report.sha256 == manifest.model.sha256


def test_another_preprocessing_and_another_version_are_refused(index, tmp_path):
    manifest = replace(search.read_record(index), preprocessing="squares")
    with pytest.raises(SearchError, match="'squares'"):
        search.reopen_model(index, manifest)
    values = json.loads((index / "index.json").read_text())
    del values["sha256"]  # as in version 2, which had none
    values["version"] = 2
    for text, reason in [
        (json.dumps({**values, "version": 1}), "version 1.* index the gallery again"),
        (json.dumps({**values, "version": 4}), "version 4"),
        (json.dumps({**values, "version": 3}), "is damaged: its content has SHA-256"),
        (json.dumps({"version": 2}), "lacks"),
        (json.dumps({**values, "shards": [3]}), "lacks an entry or has a wrong one"),
        (json.dumps({**values, "storage": "int8"}), "lacks an entry or has a wrong"),
        (json.dumps({**values, "gallery": 3}), "lacks an entry or has a wrong one"),
        (json.dumps({**values, "excluded": [3]}), "lacks an entry or has a wrong one"),
        (json.dumps({**values, "tokenizer": ".."}), "lacks an entry or has a wrong"),
        (json.dumps({**values, "shards": 2 * values["shards"]}), "lacks an entry or"),
        (
            json.dumps({**values, "shards": [{"name": "../../x", "rows": 24}]}),
            "lacks an entry or has a wrong one",
        ),
        ("[" * 100000, "damaged"),
        ("{", "damaged"),
        ("[]", "version None"),
    ]:
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(SearchError, match=reason):
            search.read_record(tmp_path)
    with pytest.raises(SearchError, match="no index at"):
        search.read_record(tmp_path / "nowhere")


def test_two_writers_are_one_too_many(index, encoder):
    with (index / ".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(SearchError, match="another process"):
            search.add(index, encoder)


def test_a_tokenizer_must_be_the_models(model_file, tmp_path):
    with pytest.raises(WeightsError, match="--tokenizer"):
        search.open_model(model_file)
    with pytest.raises(WeightsError, match="49408 entries"):
        search.open_model(model_file, tokenizer="clip")
    with pytest.raises(WeightsError, match="merges"):
        search.open_model(model_file, tokenizer=str(tmp_path))


def test_a_run_folder_names_its_tokenizer(model_file, population, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "model_best.safetensors").write_bytes(model_file.read_bytes())
    tokenizer = str(population / "tokenizer")
    (run / "config.json").write_text(json.dumps({"data.tokenizer": tokenizer}))
    opened = search.open_model(run)
    assert (opened.tokenizer_name, opened.efa_rule) == (tokenizer, "official")


def test_words_are_compared_by_the_rule_of_the_run(index, model_file, tmp_path):
    """As `figures words` does it; "plus" leaves the lower half of a range out."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "model_best.safetensors").write_bytes(model_file.read_bytes())
    maps = {}
    for rule in ("official", "plus", "unheard-of"):
        (run / "config.json").write_text(json.dumps({"loss.efa_rule": rule}))
        searcher = search.open_searcher(index, model=str(run))
        maps[rule] = searcher.explain("a red hat", 0).patches
    np.testing.assert_array_equal(maps["official"], maps["unheard-of"])
    dropped = [(maps[rule] == 0).mean() for rule in ("official", "plus")]
    assert dropped[1] > dropped[0] and dropped[1] > 0.2


def test_the_activation_asked_for_is_the_indexs(model_file, population, index):
    tokenizer = str(population / "tokenizer")
    asked = search.open_model(model_file, tokenizer=tokenizer, activation="gelu")
    assert asked.record.config["activation"] == "gelu"
    record = store.read_record(index)
    for stated in ("gelu", "quick_gelu", None):
        config = {**record.model.config, "activation": stated}
        if stated is None:  # as before there was a choice
            del config["activation"]
        changed = replace(record, model=replace(record.model, config=config))
        opened = search.reopen_model(index, changed)
        assert opened.model.config.activation == (stated or "quick_gelu")


def test_an_index_from_before_there_was_a_choice_goes_on(encoder, gallery, tmp_path):
    out = tmp_path / "people.index"
    search.index_gallery(gallery, out, encoder, **SMALL)
    record = json.loads((out / store.RECORD).read_text())
    new = ("activation", "precision", "products", "attention", "tse_width", "tse_ratio")
    for name in new:
        del record["model"]["config"][name]
    del record["sha256"]
    record["version"] = 2
    (out / store.RECORD).write_text(json.dumps(record))
    assert search.index_gallery(gallery, out, encoder, **SMALL).added == 0


def test_an_empty_gallery_and_a_missing_one_are_told(encoder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SearchError, match="no pictures below"):
        search.index_gallery(tmp_path / "empty", tmp_path / "out", encoder)
    with pytest.raises(SearchError, match="no folder"):
        search.index_gallery(tmp_path / "nowhere", tmp_path / "out", encoder)
    for wrong in ({"storage": "float64"}, {"engine": "annoy"}):
        with pytest.raises(SearchError, match="wanted one of float32"):
            search.index_gallery(tmp_path / "empty", tmp_path / "out", encoder, **wrong)


def test_many_small_additions_do_not_leave_many_shards(gallery, encoder, tmp_path):
    out = tmp_path / "index"
    search.index_gallery(gallery, out, encoder, storage="float16")
    for shade in range(3):
        Image.new("RGB", (30, 60), (0, 80 * shade, 0)).save(gallery / f"{shade}.png")
        search.add(out, encoder)
    assert len(search.read_record(out).shards) == 1
    (shard,) = search.Gallery(out).shards
    assert shard.rows.shape == (27, 64) and shard.rows.dtype == np.float16


def test_a_faiss_index_follows_its_gallery(gallery, encoder, tmp_path):
    pytest.importorskip("faiss")
    out = tmp_path / "index"
    change = search.index_gallery(gallery, out, encoder, engine="faiss")
    assert change.faiss is not None and change.faiss.recall == 1
    searcher = search.open_searcher(out)
    vector = searcher.vector(picture=searcher.gallery.read(11))
    found = searcher.search(vector, 3)
    exact = search.ExactSearch(searcher.gallery.shards)(vector, 3)
    assert found.rows.tolist() == exact.rows.tolist() and found.rows[0] == 11
    search.remove(out, [searcher.gallery.file(11)])
    searcher = search.open_searcher(out)
    again = searcher.search(vector, 2)
    np.testing.assert_allclose(again.similarity, exact.similarity[1:], atol=1e-6)
    (path,) = out.glob("*.faiss")
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    path.unlink()  # still mapped by the searchers above
    with pytest.raises(SearchError, match="missing or damaged"):
        search.open_searcher(out)
    path.write_bytes(damaged)
    with pytest.raises(SearchError, match="missing or damaged"):
        search.open_searcher(out)


def test_an_index_that_was_emptied_says_so(gallery, encoder, tmp_path):
    out = tmp_path / "index"
    search.index_gallery(gallery, out, encoder)
    assert search.remove(out, ["."]).rows == 0
    with pytest.raises(SearchError, match="holds no pictures"):
        search.open_searcher(out)
    assert search.add(out, encoder).excluded == 24
    assert search.add(out, encoder, ["."]).rows == 24


def test_an_index_with_another_tokenizer_is_refused(
    gallery, encoder, population, tmp_path
):
    out = tmp_path / "index"
    search.index_gallery(gallery, out, encoder)
    other = tmp_path / "tokenizer"
    shutil.copytree(population / "tokenizer", other)
    with (other / "merges.txt").open("a") as stream:
        stream.write("\n")
    with pytest.raises(SearchError, match="another tokenizer"):
        search.index_gallery(gallery, out, replace(encoder, tokenizer_name=str(other)))


def test_names_below_a_folder():
    assert files.is_below("a/b.jpg", ["a"]) and files.is_below("a", ["a"])
    assert not files.is_below("ab.jpg", ["a"]) and files.is_below("x", [""])


def test_a_reader_follows_a_writer_that_replaces_shards(
    gallery, encoder, tmp_path, monkeypatch
):
    out = tmp_path / "index"
    search.index_gallery(gallery, out, encoder)
    original = query.open_shards

    def late(*arguments):
        monkeypatch.setattr(query, "open_shards", original)
        search.remove(out, [search.Gallery(out).file(0)])
        return original(*arguments)

    monkeypatch.setattr(query, "open_shards", late)
    assert len(search.Gallery(out)) == 23
    (path,) = (out / "shards").iterdir()
    path.unlink()
    with pytest.raises(SearchError, match="missing or damaged"):
        search.Gallery(out)


def test_every_commit_is_a_valid_index_and_small_shards_are_joined(
    gallery, encoder, tmp_path, monkeypatch
):
    """With shards of 10 pictures, commits of 4, and pictures that have changed."""
    monkeypatch.setattr(writer, "SHARD_ROWS", 10)
    out = tmp_path / "index"
    seen = []

    def look(done, wanted, bad):
        if (out / "index.json").exists():
            record = search.read_record(out)
            files = {f"{shard.name}.safetensors" for shard in record.shards}
            assert files == {path.name for path in (out / "shards").iterdir()}
            seen.append([shard.rows for shard in record.shards])
            assert len(content(out)) == record.rows

    pace = {"batch_size": 4, "save_every": 4, "progress": look}
    search.index_gallery(gallery, out, encoder, **pace)
    assert seen == [[4], [4, 4], [10, 2], [10, 2, 4], [10, 10], [10, 10, 4]]
    before = content(out)
    changed = sorted(before)[3:17]
    for file in changed:
        Image.new("RGB", (30, 60), "red").save(gallery / file)
    seen.clear()
    search.add(out, encoder, **pace)
    assert [sum(rows) for rows in seen] == [24] * 5
    assert seen[-1] == [10, 10, 4]
    after = content(out)
    kept = before.keys() - set(changed)
    assert same({f: after[f] for f in kept}, {f: before[f] for f in kept})
    assert all(not np.allclose(after[f], before[f]) for f in changed)


def test_a_damaged_shard_is_not_carried_on(gallery, encoder, tmp_path):
    out = tmp_path / "index"
    search.index_gallery(gallery, out, encoder)
    (path,) = (out / "shards").iterdir()
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.unlink()
    path.write_bytes(damaged)
    for command in (lambda: search.add(out, encoder), lambda: search.remove(out)):
        with pytest.raises(SearchError, match="its content has changed"):
            command()
    searcher = search.open_searcher(out)
    with pytest.raises(SearchError, match="its content has changed"):
        searcher.search(searcher.vector("a man"), 1)
