# SPDX-License-Identifier: Apache-2.0
"""Many hosts: real processes that find each other as a user starts them, over gloo.

Four devices, as 1 process x 4, 2 x 2 and 4 x 1. A process takes seconds to start, so
each group of them is started once and does one run after the other (host.py); the
fixtures tell the story, the tests look at what it left. Nothing here asserts a time.

Some run folders lie on a disk that all share, others in a store. Processes have a cache
folder each, so those share nothing.
"""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from data_pipeline import order
from data_pipeline.buckets import Bucket
from fmfa_jax.machines.lifecycle import FAILED_EXIT, STALLED_EXIT
from fmfa_jax.run import manifests
from tests.fmfa_jax.machines.host import BATCH, IDENTITIES, STEPS, Job
from tests.fmfa_jax.machines.hosts import Hosts
from tests.tiny_run import IMAGES, TEST, VAL

HOST = Path(__file__).with_name("host.py")
LAST = "model_last.safetensors"
# One method with a cache of decoded pictures, one without.
CACHES = {"fmfa": "memory", "weak": "none"}
NOISY = {"data.noise": 0.5}
PAIRS = 2 * IDENTITIES * IMAGES
SAVE = {"checkpoint.every_steps": 2, "checkpoint.keep": 3}
SEAL = "manifest.json"
SPEEDS = ("steps_per_second", "pairs_per_second", "model_flops_per_second", "mfu")

CONFIG = """
import json, os
from pathlib import Path
from tests.fmfa_jax.machines import host

host.share_programs(int(os.environ["PROCESS_ID"]))
if "HOSTS_TRAP" in os.environ:
    host.trap(**json.loads(os.environ["HOSTS_TRAP"]))

def get_config():
    return host.config(Path({folder!r}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def start(folder, stores) -> Iterator:
    """Start a group of a name; all are ended at last."""
    started = []
    with suppress(pytest.skip.Exception):  # which skips those that use the store
        stores.line("s3")

    def start(name: str, count: int, *command: str, **trap: str) -> Hosts:
        command = command or (str(HOST), str(folder))
        started.append(Hosts(folder, name, count, list(command), **trap))
        return started[-1]

    yield start
    for hosts in started:
        hosts.close()


@pytest.fixture(scope="module")
def job(folder) -> Callable[..., Job]:
    """Make a job whose run lies in a folder of its name, or at a URL."""

    def job(name: str, method: str = "fmfa", *, url: str = "", **parts: Any) -> Job:
        return Job(name, url or str(folder / name), method, **parts)

    return job


@pytest.fixture(scope="module")
def groups(job, start) -> dict[int, Hosts]:
    """One, two and four hosts, each after a whole run of its methods."""
    groups = {}
    for count in (1, 2, 4):
        groups[count] = start(f"hosts-{count}", count)
        for method, cache in CACHES.items():
            changes = {"data.cache": cache}
            if (method, count) == ("weak", 1):
                changes |= SAVE
            groups[count].give(job(f"{method}-{count}", method, changes=changes))
        last = "weak"
        if count < 4:
            last = "rde"
            groups[count].give(job(f"rde-{count}", last, changes=NOISY))
        if count > 1:  # a single host leaves a core to these
            groups[count].outcomes(f"{last}-{count}")
    groups[1].outcomes("rde-1")
    return groups


@pytest.fixture(scope="module")
def url(folder, stores) -> str:
    """A run folder in a store."""
    return stores.url("s3", f"{folder.name}-{os.getpid()}/killed")


@pytest.fixture(scope="module")
def killed(groups, job, folder, url) -> Path:
    """A run on four hosts, one of which is killed after the checkpoint of step 2."""
    trap = {"2": {"do": "KILL", "step": 3, "after": f"{url}/checkpoints/2/{SEAL}"}}
    groups[4].give(job("killed", "weak", url=url, changes=SAVE, trap=trap))
    assert groups[4].codes(2) == [-signal.SIGKILL], groups[4].said()
    groups[4].left = groups[4].codes(0, 1, 3)
    return copied(url, folder / "killed")


@pytest.fixture(scope="module")
def shrunk(groups, killed, job, folder, url) -> Path:
    """The same run, on two hosts."""
    groups[2].do(job("killed", "weak", url=url))
    return copied(url, folder / "shrunk")


@pytest.fixture(scope="module")
def grown(groups, job, folder) -> Path:
    """A run that one host has begun, and two go on with after step 2."""
    kept = folder / "grown" / "checkpoints"
    shutil.copytree(folder / "weak-1" / "checkpoints" / "2", kept / "2")
    shutil.copy(folder / "weak-1" / "metrics.jsonl", kept.parent)
    groups[2].do(job("grown", "weak"))
    return kept.parent


@pytest.fixture(scope="module")
def differ(groups, job, folder) -> list[dict]:
    """What two hosts say that have another configuration, data and code."""
    changes = {
        "optimizer.lr": 1.0,
        "data.root": str(folder / "others"),
        "data.options.seed": 1,
    }
    other = {"1": {"changes": changes, "code": "0123"}}
    return groups[2].do(job("differ", other=other, expect="error"))


@pytest.fixture(scope="module")
def lacking(groups, job, folder) -> list[dict]:
    """What two hosts say, one of which lacks a file."""
    other = {"1": {"changes": {"data.tokenizer": str(folder / "nowhere")}}}
    return groups[2].do(job("lacking", other=other, expect="error"))


@pytest.fixture(scope="module")
def hung(groups, grown, shrunk, differ, lacking, job, folder) -> Path:
    """A run on two hosts, one of which is suspended after the checkpoint of step 2.

    The last job of this group, hence after all others.
    """
    after = str(folder / "hung" / "checkpoints" / "2" / SEAL)
    # It loads its programs and stands still; give it as long as a whole run, or more.
    seconds = max(outcome["seconds"] for outcome in groups[2].outcomes("grown"))
    groups[2].give(
        job(
            "hung",
            changes=SAVE | {"run.watchdog_seconds": max(8, int(2 * seconds))},
            trap={"1": {"do": "STOP", "step": 3, "after": after}},
        )
    )
    groups[2].left = groups[2].codes(0)
    return as_left(folder / "hung")


@pytest.fixture(scope="module")
def broken(hung, start, folder) -> Hosts:
    """The hung run, resumed by `main.py` on two hosts, until one has a disk fail."""
    (folder / "config.py").write_text(CONFIG.format(folder=str(folder)))
    run = folder / "hung"
    trap = {"do": "error", "step": 4, "after": str(run / "checkpoints" / "4" / SEAL)}
    command = ["main.py", f"--config={folder}/config.py", f"--workdir={run}"]
    command += [f"--config.{key}={value}" for key, value in SAVE.items()]
    hosts = start("main", 2, *command, HOSTS_TRAP=json.dumps(trap))
    hosts.left = hosts.codes(0, 1)
    hosts.run = as_left(run, "broken")
    return hosts


def as_left(run: Path, name: str = "left") -> Path:
    """A copy, because another group goes on with the run."""
    return Path(shutil.copytree(run, run.with_name(f"{run.name}-{name}")))


def copied(url: str, folder: Path) -> Path:
    """A copy of what lies in a store."""
    Bucket(url).get(Bucket(url).list(), folder)
    return folder


def rows(run: Path) -> list[dict]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row for row in lines if "total" in row]


def assert_same_run(got: Path, want: Path) -> None:
    """The same losses to 1e-5; parameters to 1e-6 (five steps move them by 4e-5)."""
    ours, theirs = rows(got), rows(want)
    assert [row["step"] for row in ours] == list(range(1, STEPS + 1))
    for a, b in zip(ours, theirs, strict=True):
        for name in b.keys() - SPEEDS:
            np.testing.assert_allclose(
                a[name], b[name], rtol=1e-5, atol=1e-5, err_msg=f"{b['step']}: {name}"
            )
    ours, theirs = load_file(got / LAST), load_file(want / LAST)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_allclose(
            ours[name], theirs[name], rtol=0, atol=1e-6, err_msg=name
        )


def assert_whole_but_unfinished(run: Path, *, step: int) -> None:
    """What a failure leaves: sound checkpoints, the newest of `step`, and no result."""
    found = [path for path in (run / "checkpoints").iterdir() if path.name.isdecimal()]
    assert max(int(path.name) for path in found) == step
    for path in found:
        assert manifests.verify(path).step == int(path.name)
    assert not (run / LAST).exists()


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("method", CACHES)
def test_hosts_agree_with_one_host(groups, folder, method, count):
    assert_same_run(folder / f"{method}-{count}", folder / f"{method}-1")


def test_two_hosts_divide_the_pairs_as_one_does(groups, folder):
    assert_same_run(folder / "rde-2", folder / "rde-1")
    shares = [row["kept_share"] for row in rows(folder / "rde-2")]
    assert min(shares) < 1


def test_the_weak_runs_mine(groups, folder):
    for count in groups:
        found = [row["links_per_anchor"] > 0 for row in rows(folder / f"weak-{count}")]
        assert found == [False, False, True, True, True]
        assert all(row["global"] > 0 for row in rows(folder / f"weak-{count}")[2:])


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("method", CACHES)
def test_a_host_reads_the_pictures_of_its_rows_only(groups, method, count):
    """In training those of the order alone; each of evaluation's once before the first
    step, to see that it can be read, and once to be measured."""
    share = BATCH // count
    batches = [
        order.batch_ids(step, seed=0, size=PAIRS, batch_size=BATCH)
        for step in range(STEPS)
    ]
    evaluated = []
    for host, outcome in enumerate(groups[count].outcomes(f"{method}-{count}")):
        own = [ids[host * share : (host + 1) * share] for ids in batches]
        wanted = (np.concatenate(own) // 2).tolist()  # two captions a picture
        reads = [index for split, index in outcome["reads"] if split == "train"]
        if CACHES[method] == "none":
            assert sorted(reads) == sorted(wanted)
        else:
            assert set(reads) == set(wanted)
        evaluated += [tuple(read) for read in outcome["reads"] if read[0] != "train"]
    pictures = {"val": VAL * IMAGES, "test": TEST * IMAGES}
    assert sorted(evaluated) == [
        (split, index)
        for split in sorted(pictures)
        for index in range(pictures[split])
        for _ in ("seen", "measured")
    ]


def test_a_host_that_is_killed_ends_the_run_and_leaves_it_whole(groups, killed):
    assert 0 not in groups[4].left
    for host in (0, 1, 3):
        said = groups[4].logs[host].read_text()
        assert f"process {host} of 4 ends: " in said or "another task died" in said
    assert_whole_but_unfinished(killed, step=2)


def test_two_hosts_go_on_with_what_four_have_begun(shrunk, folder):
    assert_same_run(shrunk, folder / "weak-1")


def test_a_store_has_the_files_that_a_disk_has(shrunk, folder):
    def names(run: Path) -> set[str]:
        found = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}
        foreign = ("checkpoints/", "lock", "bad_images-")  # of more processes
        return {name for name in found if not name.startswith(foreign)}

    assert names(shrunk) == names(folder / "weak-2") > {"metrics.jsonl", LAST}


def test_two_hosts_go_on_with_what_one_has_begun(grown, folder):
    assert_same_run(grown, folder / "weak-1")


def test_hosts_that_differ_refuse_before_the_first_step(differ, folder):
    keys = ["code", "config.data.options.seed", "config.data.root"]
    keys += ["config.optimizer.lr", "data"]
    for outcome in differ:
        lines = outcome["error"].splitlines()
        assert lines[0] == "ValueError: the processes of this run disagree:"
        assert [line.split(":")[0].strip() for line in lines[1:-1]] == keys
        assert '"0123" on process 1' in lines[1]
    assert not (folder / "differ").exists()


def test_what_one_host_lacks_is_told_on_both(lacking, folder):
    assert "process 1: FileNotFoundError: " in lacking[0]["error"]
    assert str(folder / "nowhere") in lacking[0]["error"]
    assert lacking[1]["error"].startswith("FileNotFoundError: ")


def test_a_host_that_hangs_ends_the_run_and_leaves_it_whole(groups, hung):
    assert groups[2].left == [STALLED_EXIT]
    said = groups[2].logs[0].read_text()
    assert "watchdog: process 0 of 2 has made no progress for" in said
    assert "the same command resumes" in said and "in train" in said
    assert_whole_but_unfinished(hung, step=2)


def test_the_command_goes_on_and_an_error_on_one_host_ends_both(broken):
    first, second = (log.read_text() for log in broken.logs)
    assert f"resumed after step 2 of {STEPS}" in first
    assert "OSError: the disk is gone" in second
    assert "process 1 of 2 ends: OSError" in second
    assert "process 0 of 2 ends: " in first or "another task died" in first
    assert broken.left[1] == FAILED_EXIT and broken.left[0] != 0
    assert_whole_but_unfinished(broken.run, step=4)


def test_one_host_goes_on_with_what_two_have_begun(broken, groups, job, folder):
    groups[1].do(job("hung"))
    assert_same_run(folder / "hung", folder / "fmfa-1")


def test_a_start_imports_nothing_that_it_does_not_need(groups):
    """Keras is as large as the rest of TensorFlow, which imports it unasked."""
    for count, hosts in groups.items():
        assert [o["keras"] for o in hosts.outcomes(f"fmfa-{count}")] == [False] * count
