# SPDX-License-Identifier: Apache-2.0
"""Objects by URL, and local copies of them, in memory and on real protocol servers."""

import os

import pytest

from data_pipeline import buckets, copies
from data_pipeline.buckets import Bucket, StoreError
from data_pipeline.copies import near
from tests.stores import NEEDED, REFUSAL

NAMES = {"a": b"1", "b/c.txt": b"22", "b/empty": b"", "b/d [1]*?#%.jpg": b"4444"}


@pytest.fixture(params=NEEDED)
def scheme(request):
    return request.param


@pytest.fixture
def url(scheme, stores, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return stores.url(scheme, f"{tmp_path.name}-{os.getpid()}")


def filled(url, folder) -> Bucket:
    for name, content in NAMES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    bucket = Bucket(url)
    bucket.put(folder, NAMES)
    return bucket


def contents(folder) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_objects_are_put_listed_read_and_removed(url, tmp_path, monkeypatch):
    bucket = filled(url, tmp_path / "one")
    monkeypatch.setattr(buckets, "_AT_ONCE", 3)  # larger ones go another way
    bucket.put(tmp_path / "one", ["b/d [1]*?#%.jpg"])
    bucket.write("bb", b"")  # which a listing below b must not have
    assert {name: each.size for name, each in bucket.list("b").items()} == {
        name: len(content) for name, content in NAMES.items() if name > "b"
    }
    bucket.get({name: bucket.list()[name] for name in NAMES}, tmp_path / "two")
    assert contents(tmp_path / "two") == NAMES
    bucket.remove(["a", "bb", "never"])
    assert bucket.list().keys() == NAMES.keys() - {"a"}
    assert bucket.read("a") is None and bucket.read("b/c.txt") == b"22"
    assert Bucket(f"{url}/b/c.txt").single().size == 2
    assert Bucket(f"{url}/b").single() is None and Bucket(f"{url}/x").list() == {}


def test_one_of_two_creates(url):
    one, other = Bucket(url), Bucket(url)
    assert one.create("lock", b"one")
    assert not other.create("lock", b"other")
    assert one.create("lock", b"one"), "an answer was lost, and the request repeated"
    assert one.read("lock") == b"one"


def test_what_is_copied_is_as_in_the_store(url, tmp_path):
    bucket = filled(url, tmp_path / "one")
    copy = tmp_path / near(url, what="x")
    assert contents(copy) == NAMES
    before = {name: (copy / name).stat().st_ino for name in NAMES}
    bucket.write("a", b"9")  # of the same size
    bucket.remove(["b/c.txt"])
    (copy / "b/empty").write_bytes(b"damaged")
    assert near(url, what="x") == str(copy)
    left = {name: each for name, each in NAMES.items() if name != "b/c.txt"}
    assert contents(copy) == {**left, "a": b"9"}
    kept = {"b/d [1]*?#%.jpg"}
    after = {name: (copy / name).stat().st_ino for name in kept}
    assert after == {name: before[name] for name in kept}, "copied once"


def test_a_single_object_is_copied_under_its_name(url, tmp_path):
    filled(url, tmp_path / "one")
    copy = near(f"{url}/b/c.txt", what="x")
    assert copy.endswith("/c.txt")
    with open(copy, "rb") as file:
        assert file.read() == b"22"
    with pytest.raises(
        FileNotFoundError, match=r"x: there is no file or folder \S+/no"
    ):
        near(f"{url}/no", what="x")


def test_a_copy_that_was_interrupted_goes_on(url, tmp_path, monkeypatch):
    filled(url, tmp_path / "one")
    monkeypatch.setattr(copies, "_ROUND", 1)
    copy = tmp_path / near(url, what="x")
    record = copy.parent / "copied"
    lines = record.read_bytes().splitlines(keepends=True)
    torn = [*lines[:2], b'["b/e\n', b"7\n", lines[2][:9]]
    record.write_bytes(b"".join(torn))
    (copy.parent / "draft").mkdir()
    (copy / "b/empty").unlink()
    assert near(url, what="x") == str(copy) and contents(copy) == NAMES


def test_a_run_s_checkpoints_are_not_copied(url, tmp_path):
    for name in ("config.json", "metrics.jsonl", "checkpoints/5/manifest.json"):
        Bucket(url).write(name, b"{}")
    assert contents(tmp_path / near(url, what="x")).keys() == {
        "config.json",
        "metrics.jsonl",
    }


@pytest.mark.parametrize("name", ["../x", "a/../../x", "a\\x"])
def test_no_name_leads_out_of_the_copy(name, tmp_path, monkeypatch, stores):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bucket = Bucket(stores.url("memory", f"{tmp_path.name}-{os.getpid()}"))
    bucket._fs.store[bucket._at(name)] = bucket._fs.store.pop(_made(bucket))
    with pytest.raises(StoreError, match="wanted names that files can have"):
        near(bucket.url, what="x")
    bucket._fs.rm(bucket._root, recursive=True)


def _made(bucket) -> str:
    bucket.write("made", b"")
    return bucket._at("made")


def test_an_absent_package_is_asked_for(monkeypatch):
    monkeypatch.setitem(buckets.PACKAGES, "s3", "no_such_package")
    with pytest.raises(StoreError, match="pip install no_such_package") as error:
        Bucket("s3://b/\x1b")
    assert "\n" not in str(error.value) and "\x1b" not in str(error.value)


@pytest.mark.parametrize("kind", ["s3", "gs"])
@pytest.mark.parametrize("answer", [REFUSAL, b""], ids=["refused", "cut"])
def test_a_request_that_fails(kind, answer, stores, tmp_path):
    """Refused: told in one line. A line that is cut: asked again."""
    line, bucket = stores.line(kind), Bucket(stores.url(kind, tmp_path.name))
    line.fail(b"precious", answer=answer)
    if answer:
        with pytest.raises(StoreError, match=r"could not write precious: .*allowed$"):
            bucket.write("precious", b"content")
        assert bucket.read("precious") is None
    else:
        bucket.write("precious", b"content")
        assert bucket.read("precious") == b"content"
    assert line.left == 0
