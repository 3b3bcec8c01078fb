# SPDX-License-Identifier: Apache-2.0
"""What a command makes for a store arrives whole, or not at all."""

import argparse
import os
from pathlib import Path

import pytest

from data_pipeline.buckets import Bucket, StoreError
from data_pipeline.delivery import Target, delivered
from fmfa_jax.figures.__main__ import main as figures
from tests.stores import NEEDED, REFUSAL


@pytest.fixture(params=NEEDED)
def url(request, stores, tmp_path):
    return stores.url(request.param, f"{tmp_path.name}-{os.getpid()}")


def asked(url: str) -> argparse.Namespace:
    return argparse.Namespace(out=Target(url), other="a/path", count=3)


def test_a_file_and_a_folder_arrive(url):
    args = asked(f"{url}/table.md")
    with delivered(args) as address:
        Path(args.out).write_text("one")
        assert not Bucket(url).list()
    assert address(args.out) == f"{url}/table.md"
    assert address("a/path") == "a/path" and args.other == "a/path"
    args = asked(f"{url}/made/")
    with delivered(args) as address:
        Path(args.out, "a/b").mkdir(parents=True)
        Path(args.out, "a/b/c").write_text("two")
        assert address(Path(args.out, "a/b/c")) == f"{url}/made/a/b/c"
    there = {name: Bucket(url).read(name) for name in Bucket(url).list()}
    assert there == {"table.md": b"one", "made/a/b/c": b"two"}
    assert not Path(args.out).exists()


def test_a_command_that_fails_leaves_the_store_as_it_was(url):
    args = asked(f"{url}/table.md")
    with pytest.raises(ValueError, match="halfway"), delivered(args):
        Path(args.out).write_text("half")
        raise ValueError("halfway")
    assert not Bucket(url).list()


def test_what_must_be_new_replaces_nothing(url):
    Bucket(url).write("there/one", b"1")
    for name in ("there", "there/one"):
        with (
            pytest.raises(FileExistsError, match=f"{name} is there already; choose"),
            delivered(asked(f"{url}/{name}"), new=True),
        ):
            raise AssertionError("entered")
    args = asked(f"{url}/there/one")
    with delivered(args):
        Path(args.out).write_text("2")
    assert Bucket(url).read("there/one") == b"2"


def test_a_figure_is_drawn_into_a_store(stores, tmp_path, capsys):
    run, url = tmp_path / "run", stores.url("s3", f"{tmp_path.name}-{os.getpid()}")
    run.mkdir()
    row = '{"step": 1, "epoch": 1.0, "total": 2.0, "lr": 0.1}\n'
    (run / "metrics.jsonl").write_text(row)
    line = ["curves", str(run), "--out", f"{url}/figures"]
    stores.line("s3").fail(b"curves.png", answer=REFUSAL)
    assert figures(line) == 2
    assert "could not write it" in capsys.readouterr().err
    assert figures(line) == 0
    assert capsys.readouterr().out == f"wrote {url}/figures/curves.png\n"
    assert Bucket(f"{url}/figures").read("curves.png").startswith(b"\x89PNG")
    assert issubclass(StoreError, OSError)
