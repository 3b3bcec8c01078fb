# SPDX-License-Identifier: Apache-2.0
"""One run at a time in a store: who waits, who is refused, who takes over."""

import json
import os
import threading

import pytest

from data_pipeline.buckets import Bucket
from fmfa_jax.run.bucket_lock import BucketLock
from fmfa_jax.run.lock import LOCK, InUseError
from tests.stores import NEEDED

REFRESH, PATIENCE = 0.05, 0.6
FOREVER = 600.0  # seconds until a sign of life: as good as dead


@pytest.fixture(params=NEEDED)
def bucket(request, stores, tmp_path):
    return Bucket(stores.url(request.param, f"{tmp_path.name}-{os.getpid()}"))


@pytest.fixture
def lock(bucket, tmp_path):
    """Makes locks, each with a local folder of its own."""
    made = []

    def make(*, folder="a", refresh=REFRESH, said=None):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / LOCK).touch()
        say = (said if said is not None else []).append
        times = {"refresh": refresh, "patience": PATIENCE}
        made.append(BucketLock(bucket, tmp_path / folder, say=say, **times))
        return made[-1]

    yield make
    for each in made:
        each.release()


def test_a_second_run_is_refused_while_the_first_lives(lock):
    lock().take()
    said = []
    with pytest.raises(InUseError, match=rf"in use by process {os.getpid()} on .*wait"):
        lock(folder="b", said=said).take()
    assert len(said) == 1 and "waiting up to 1 s for a sign of life" in said[0]


def test_one_that_left_in_order_is_no_reason_to_wait(lock, bucket):
    first, said = lock(), []
    first.take()
    first.release()
    lock(folder="b", said=said).take()
    assert said == [] and [*bucket.list("locks")] == ["locks/2"]


def test_one_that_is_silent_is_taken_for_dead_and_told_of_its_loss(lock):
    first, said = lock(refresh=FOREVER), []
    first.take()
    first.check()
    second = lock(folder="b", said=said)
    second.take()
    assert "waiting" in said[0] and "left" in said[1] and len(said) == 2
    second.check()
    with pytest.raises(InUseError, match="is in use by process"):
        first.check()
    first.release()  # which must not free what is no longer its own
    second.check()
    with pytest.raises(InUseError):
        lock(folder="c").take()


def test_on_the_same_host_the_kernel_knows_that_it_is_dead(lock):
    lock(refresh=FOREVER).take()
    said = []
    lock(said=said).take()
    assert len(said) == 1 and "its place is taken" in said[0]


def test_one_that_comes_back_to_life_keeps_its_place(lock, bucket):
    first = lock(refresh=FOREVER)
    first.take()
    wakes = threading.Timer(
        PATIENCE / 3, lambda: bucket.write("locks/1", first._sign())
    )
    wakes.start()
    with pytest.raises(InUseError):
        lock(folder="b").take()
    first.check()
    wakes.join()


def test_where_a_store_took_two_one_finds_out(lock, bucket):
    first, other = lock(refresh=FOREVER), lock(folder="b")
    first.take()
    bucket.write("locks/1", other._sign())
    with pytest.raises(InUseError):
        first.check()


def test_one_that_leaves_meanwhile_is_followed_and_not_taken_for_dead(lock, bucket):
    first, said = lock(refresh=FOREVER), []
    first.take()
    leaves = threading.Timer(PATIENCE / 3, first.release)
    leaves.start()
    second = lock(folder="b", said=said)
    second.take()
    leaves.join()
    second.check()
    assert [*bucket.list("locks")] == ["locks/2"]
    assert len(said) == 1 and "waiting" in said[0]
    with pytest.raises(InUseError):
        first.check()


def test_of_many_that_come_at_once_one_gets_it(lock):
    barrier, won = threading.Barrier(4), []

    def come(each):
        barrier.wait()
        try:
            each.take()
            won.append(each)
        except InUseError:
            pass

    threads = [
        threading.Thread(target=come, args=[lock(folder=name)]) for name in "abcd"
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(won) == 1
    won[0].check()


@pytest.mark.parametrize("bucket", ["memory"], indirect=True)
@pytest.mark.parametrize("content", [b"\xff", b"[]", b"", b'{"pid": "\\u001b[31m"}'])
def test_what_an_object_says_is_not_trusted(lock, bucket, content):
    bucket.write("locks/7", content)
    bucket.write("locks/x", content)
    said = []
    lock(said=said).take()
    assert "\x1b" not in "".join(said)
    assert json.loads(bucket.read("locks/8"))["pid"] == os.getpid()
