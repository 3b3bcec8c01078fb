# SPDX-License-Identifier: Apache-2.0
"""Queries by sentence and picture, and the commands as a user types them."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from PIL import Image

from data_pipeline import images
from fmfa_jax import search
from fmfa_jax.search.__main__ import ProgressLine, main
from fmfa_jax.search.encoder import embeddings
from fmfa_jax.search.query import MAX_LETTERS
from fmfa_jax.search.store import SearchError

SENTENCE = "a man in a red jacket with a black backpack"


def rows_of(searcher):
    return np.concatenate([np.asarray(shard.rows) for shard in searcher.gallery.shards])


def test_a_sentence_ranks_the_gallery_by_cosine(searcher):
    tokens = searcher.model.tokenizer.encode([SENTENCE], 24)
    text = np.asarray(searcher.model.model.encode_text(tokens))[0]
    cosines = rows_of(searcher) @ (text / np.linalg.norm(text))
    found = searcher.search(searcher.vector(SENTENCE), 24)
    assert found.rows.tolist() == np.argsort(-cosines, kind="stable").tolist()
    np.testing.assert_allclose(found.similarity, np.sort(cosines)[::-1], atol=1e-6)


def test_a_picture_of_the_gallery_finds_itself(searcher):
    for row in (0, 7, 23):
        found = searcher.search(searcher.vector(picture=searcher.gallery.read(row)), 1)
        assert found.rows.tolist() == [row]
        assert found.similarity[0] == pytest.approx(1, abs=1e-5)


def test_sentence_and_picture_count_the_same(searcher):
    picture = searcher.gallery.read(3)
    alone = searcher.vector(SENTENCE), searcher.vector(picture=picture)
    both = searcher.vector(SENTENCE, picture)
    assert both @ alone[0] == pytest.approx(both @ alone[1], abs=1e-5)
    assert np.linalg.norm(both) == pytest.approx(1, abs=1e-5)


def test_unusable_queries_are_told(searcher):
    with pytest.raises(SearchError, match="empty"):
        searcher.vector("  ")
    with pytest.raises(SearchError, match=f"at most {MAX_LETTERS}"):
        searcher.vector("a" * (MAX_LETTERS + 1))
    with pytest.raises(SearchError, match="cannot be read"):
        searcher.vector(picture=b"no picture")
    with pytest.raises(SearchError, match="at least 1"):
        searcher.search(searcher.vector("a"), 0)
    for row in (-1, 24):
        with pytest.raises(SearchError, match=f"picture {row} of 24"):
            searcher.gallery.file(row)


def test_a_model_that_has_diverged_is_told():
    rows = np.ones((3, 4), np.float32)
    rows[1, 2] = np.nan
    with pytest.raises(SearchError, match=r"1 of 3 rows have NaN .* has diverged"):
        embeddings(rows)
    rows[1] = 0
    np.testing.assert_allclose(np.linalg.norm(embeddings(rows), axis=1), [1, 0, 1])


def test_words_are_compared_with_the_regions_of_a_picture(searcher):
    maps = searcher.explain("A man, in RED", 5)
    assert maps.words == ("a", "man", ",", "in", "red")
    assert maps.patches.shape == (5, 4 * 2)
    np.testing.assert_allclose(maps.patches.sum(1), 1, atol=1e-5)
    other = searcher.explain("A man, in RED", 6)
    assert not np.allclose(maps.patches, other.patches)


def test_a_picture_that_became_a_link_to_elsewhere_is_not_read(
    gallery, encoder, tmp_path
):
    search.index_gallery(gallery, tmp_path / "index", encoder)
    found = search.Gallery(tmp_path / "index")
    victim = gallery / found.file(0)
    victim.unlink()
    with pytest.raises(SearchError, match="no longer in the gallery"):
        found.read(0)
    (tmp_path / "secret").write_text("secret")
    victim.symlink_to(tmp_path / "secret")
    with pytest.raises(SearchError, match="leads out of the gallery"):
        found.read(0)


def test_the_commands_as_a_user_types_them(
    gallery, model_file, population, tmp_path, capsys
):
    out, sheet = str(tmp_path / "index"), tmp_path / "sheet.png"
    tokenizer = str(population / "tokenizer")
    (gallery / "broken.jpg").write_bytes(b"?")
    model = ["--model", str(model_file), "--tokenizer", tokenizer]
    storage = ["--storage", "float16", "--batch-size", "8"]
    assert main(["index", str(gallery), "--out", out, *model, *storage]) == 0
    told = capsys.readouterr()
    assert "24 pictures (24 added, 0 removed)" in told.out
    assert "unusable: 1 file, listed in" in told.out and "broken.jpg: " in told.out
    assert "0/25 pictures, 0 bad\n25/25 pictures, 1 bad, " in told.err
    asked = ["query", out, SENTENCE, "--top", "3"]
    assert main([*asked, "--sheet", str(sheet)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["rank", "similarity", "file"] and len(lines) == 4
    assert main([*asked, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [[str(h["rank"]), f"{h['similarity']:.4f}", h["file"]] for h in results] == [
        line.split() for line in lines[1:]
    ]
    with Image.open(sheet) as drawn:
        assert drawn.width > 700
    best = str(gallery / results[0]["file"])
    assert main(["query", out, "--image", best, "--top", "1"]) == 0
    assert results[0]["file"] in capsys.readouterr().out
    assert main(["remove", out, results[0]["file"]]) == 0
    assert "23 pictures (0 added, 1 removed)" in capsys.readouterr().out
    assert main(["add", out, best]) == 0
    told = capsys.readouterr().out
    assert "24 pictures (1 added, 0 removed)" in told
    assert "unusable: 1 file" in told and "broken.jpg" not in told  # told before


def test_mistakes_end_with_a_reason_and_code_2(index, tmp_path, capsys):
    for command in (
        ["query", str(tmp_path), "a"],
        ["query", str(index)],
        ["query", str(index), "a", "--model", str(tmp_path / "none")],
        ["query", str(index), "--image", str(tmp_path / "none.jpg")],
        ["query", str(index), "a", "--sheet", str(tmp_path / "none" / "a.png")],
        ["query", str(index), "a", "--sheet", str(tmp_path / "a.txt")],
        ["remove", str(index)],
        ["remove", str(index), "a", "--missing"],
        ["serve", str(index), "--port", "99999"],
        ["serve", str(index), "--ssl-keyfile", str(tmp_path / "key.pem")],
        ["serve", str(index), "--ssl-certfile", str(tmp_path / "none.pem")],
    ):
        assert main(command) == 2, command
        told = capsys.readouterr()
        assert told.err.startswith("error: ") and not told.out, command


def test_a_log_gets_few_progress_lines(capsys):
    show = ProgressLine()
    for done in range(0, 1001, 10):
        show(done, 1000, 0)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[-1].startswith("1000/1000 pictures")


def test_a_decoded_example_has_the_models_size(searcher):
    encoded = searcher.gallery.read(0)
    shown = images.decode_resized(encoded, searcher.model.image_size)
    np.testing.assert_array_equal(searcher._example(encoded), shown)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_serve_says_one_line_and_ends_cleanly(index, end):
    command = [sys.executable, "-m", "fmfa_jax.search", "serve", index, "--port", "0"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        said = process.stdout.readline()
        found = re.fullmatch(r"24 pictures at (http:\S+/) \(Ctrl-C ends\)\n", said)
        assert found, said + process.stderr.read()
        with urllib.request.urlopen(found[1] + "api/gallery", timeout=20) as answer:
            assert json.load(answer)["pictures"] == 24
        host, port = found[1][7:-1].split(":")
        with socket.create_connection((host, int(port))) as idle:
            idle.sendall(b"nonsense\r\n\r\n")
            idle.recv(100)
            start = time.monotonic()
            process.send_signal(end)
            out, told = process.communicate(timeout=20)
        assert time.monotonic() - start < 10
    interrupted = end == signal.SIGINT
    assert process.returncode == (130 if interrupted else -signal.SIGTERM)
    assert (out, told) == ("", "\ninterrupted\n" if interrupted else "")


@pytest.mark.parametrize("missing", ["starlette", "uvicorn"])
def test_serve_names_what_is_not_installed(index, capsys, monkeypatch, missing):
    for module in [name for name in sys.modules if name.startswith(missing)]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(sys.modules, "fmfa_jax.search.server", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["serve", str(index)]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: the page needs ") and not told.out
    assert told.err.endswith("not installed: pip install starlette uvicorn\n")


def test_only_the_server_needs_starlette_and_uvicorn():
    code = "import sys, fmfa_jax.search.__main__, fmfa_jax.search.service;"
    code += "print({'starlette', 'uvicorn'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
