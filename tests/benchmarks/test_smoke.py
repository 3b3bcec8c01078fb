# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run, and compare equal computations."""

import argparse

import numpy as np
import pytest

from benchmarks import __main__ as everything
from benchmarks import cached, common, loader, train_step
from tests.benchmarks.conftest import table

TINY = ("--model", "demo", "--layers", "1")


def test_a_training_step_beside_the_peer(bench):
    sizes = (*TINY, "--batch", "4", "--classes", "10", "--irr-layers", "1")
    candidates = ("torch float32", "ours float32, remat")
    once = ("--steps", "1", "--repeats", "1", "--only", *candidates)
    title, rows = table(bench("benchmarks.train_step", *sizes, *once))
    assert title == "Training step, demo, 1 layers, batch 4"
    assert tuple(rows) == candidates
    ours = rows["ours float32, remat"]
    # The same outputs, losses and gradient, with less work.
    assert max(float(ours[k]) for k in ("features", "losses", "gradient")) < 1e-5
    assert float(ours["GFLOP/pair"]) < float(rows["torch float32"]["GFLOP/pair"])
    assert ours["MFU"] == "-"


def test_a_candidate_that_computes_something_else_is_marked(monkeypatch, capsys):
    first = {"total": 2.0, "grad_norm": 3.0}
    run = {"seconds": 2.0, "cpu_seconds": 4.0, "peak_gb": 4.0, "device_gb": None}
    wrong = run | {"first": first | {"total": 2.1}, "seconds": 1.0, "peak_gb": 1.0}
    runs = {"torch float32": [run | {"first": first}], "ours float32": [wrong]}
    outputs = {"image": np.ones(4), "text": np.ones(4)}
    monkeypatch.setattr(train_step, "_features", lambda folder, one: outputs)
    work = {"flops": 4e9, "peak_flops": 1e10}
    counts = {train_step.OURS: work, train_step.PEER: {"flops": 6e9}}
    gaps = train_step.apart(None, runs)
    options = argparse.Namespace(model="demo", layers=None, batch=2)
    found = {"counts": counts, "compiled": [5.0], "runs": runs, "apart": gaps}
    train_step.report(found, options)
    _, rows = table(capsys.readouterr().out)
    ours, torch = rows["ours float32"], rows["torch float32"]
    assert (ours["losses"], torch["losses"]) == ("5e-02 FAR", "0e+00")
    assert (ours["pairs/s"], ours["x torch float32"]) == ("2.00", "2.00")
    assert (ours["peak GB"], ours["x peak"]) == ("1.00", "0.25")
    # Both relative to the same necessary work, which is ours; ours is twice as fast.
    assert (ours["MFU"], torch["MFU"]) == ("40.0%", "20.0%")


def test_a_failed_child_loses_only_its_row(bench, monkeypatch, tmp_path, capsys):
    first = {"total": 2.0, "grad_norm": 3.0}
    np.savez(tmp_path / "out.npz", image=np.ones(4), text=np.ones(4))
    answer = {"seconds": 1.0, "cpu_seconds": 1.0, "peak_gb": 1.0, "first": first}
    answer |= {"flops": 1e9, "peak_flops": None, "features": tmp_path / "out.npz"}

    def child(module, *arguments, environment=None):
        if "steps" in arguments and "elementwise" in arguments:
            raise RuntimeError("out of memory")
        return answer

    monkeypatch.setattr(common, "child", child)
    names = ("torch float32", "ours float32", "ours float32, elementwise")
    monkeypatch.setattr("sys.argv", ["train_step", "--batch", "2", "--only", *names])
    assert train_step.main() == 1
    printed = capsys.readouterr()
    _, rows = table(printed.out)
    assert tuple(rows) == names[:2]
    assert "ours float32, elementwise is left out, it failed: out of mem" in printed.err
    with pytest.raises(RuntimeError, match="every candidate failed"):
        common.take_turns(
            "a", lambda name: child("", "steps", "elementwise"), repeats=2
        )


def test_the_time_of_a_step_is_shared_out(bench):
    sizes = (*TINY, "--batch", "4", "--classes", "10", "--irr-layers", "1")
    first, second = bench("benchmarks.profile", *sizes, "--top", "3").split("\n## ")[1:]
    title, rows = table("\n## " + first)
    assert title == "One step, demo, batch 4, float32, remat full"
    shares = {name: float(row["share %"]) for name, row in rows.items()}
    assert shares["products of matrices"] > 0
    assert sum(shares.values()) == pytest.approx(100, abs=0.5)
    assert len(table("\n## " + second)[1]) == 3


def test_the_methods_and_rdes_pass_beside_each_other(bench):
    sizes = (*TINY, "--batch", "4", "--classes", "10", "--irr-layers", "1")
    title, rows = table(bench("benchmarks.methods", *sizes, "--repeats", "1"))
    assert title == "Steps of the methods, demo, batch 4, float32, remat full"
    assert tuple(rows) == ("fmfa", "weak", "rde", "rde, the pass")
    assert rows["fmfa"]["x fmfa"] == rows["rde"]["x rde"] == "1.00"
    assert all(float(row["pairs/s"]) > 0 for row in rows.values())


def test_an_engine_beside_exact_search(bench):
    pytest.importorskip("qdrant_client")
    small = ("--people", "3", "--sentences", "2", "--repeats", "1")
    title, rows = table(bench("benchmarks.engine", *small))
    assert title == "2 sentences, 12 pictures of drawn people"
    assert rows["qdrant"]["recall@10"] == rows["exact"]["recall@10"] == "1.0000"


def test_attention_of_three_engines(bench):
    title, rows = table(bench("benchmarks.attention", "--batch", "1", "--repeats", "1"))
    shape = "193 on 193, 12 heads"
    assert title == f"Attention of 1 x {shape}, value and gradient"
    for engine in ("ours, written out", "torch"):
        for dtype, limit in (("float32", 1e-5), ("bfloat16", 1e-2)):
            row = rows[f"{engine}, {dtype}, {shape}"]
            assert 0 < float(row["from float64's"]) < limit
    assert rows[f"torch, float32, {shape}"]["x torch"] == "1"


def test_efa_in_blocks_and_all_at_once(bench):
    small = ("--rows", "9", "--batch", "4", "--width", "16", "--repeats", "1")
    title, rows = table(bench("benchmarks.efa", *small))
    assert title == "EFA, 9 x 77 rows of 4 x 4 pairs, width 16"
    assert len(rows) == 3
    for name, row in rows.items():
        assert max(float(row["value"]), float(row["gradient"])) < 1e-5, name


def test_the_vocabulary_in_blocks_and_all_at_once(bench):
    small = ("--filled", "3", "--batch", "2", "--words", "50", "--repeats", "1")
    title, rows = table(bench("benchmarks.vocabulary", *small))
    assert title == "Vocabulary, 2 captions, 3 of 28 rows filled, 50 words, float32"
    assert len(rows) == 3
    for name, row in rows.items():
        assert max(float(row["value"]), float(row["gradient"])) < 1e-5, name


def test_scaling_measures_on_many_devices(bench, monkeypatch):
    real, asked = common.child, []

    def child(*arguments, environment):
        """Answer for one device without running it, and really run two."""
        asked.append(environment["XLA_FLAGS"])
        return found if len(asked) == 1 else real(*arguments, environment=environment)

    found = {"seconds": 0.5, "losses": [3.0, 2.0]}
    monkeypatch.setattr(common, "child", child)
    small = (*TINY, "--batch", "4", "--devices", "1", "2")
    out = bench("benchmarks.scaling", *small, "--steps", "1", "--repeats", "1")
    title, rows = table(out)
    assert title == "Scaling, demo, global batch 4, simulated devices"
    assert asked == [f"--xla_force_host_platform_device_count={n}" for n in (1, 2)]
    assert rows["1 device"]["pairs/s"] == "8.0"
    assert float(rows["2 devices"]["last loss"]) > 0
    assert "share this machine's cores" in out


def test_both_loaders_read_every_picture_once(tmp_path):
    loader.write_pictures(tmp_path, 4)
    split = loader.read_split(tmp_path)
    assert loader.our_pass(split, 2)() == 4
    assert loader.peer_pass(split, 2, "float", 0)() == 4


def test_all_contestants_read_decoded_pictures(tmp_path):
    loader.write_pictures(tmp_path, 4)
    cached.fill(tmp_path)
    split, folder = loader.read_split(tmp_path), tmp_path / "cache"
    for kind in ("disk", "memory"):
        assert next(cached.our_counts(split, 2, kind, folder)) == 2
    for gathered in (False, True):
        assert next(cached.peer_counts(split, 2, gathered, folder, workers=0)) == 2


def test_a_child_of_another_environment(monkeypatch):
    monkeypatch.setenv("KEPT", "1")
    found = common.child("tests.benchmarks.echo", "a", environment={"ADDED": "2"})
    assert found["said"] == ["a", "1", "2"]
    with pytest.raises(RuntimeError, match=r"(?s)ended with 1.*KeyError: 'ADDED'"):
        common.child("tests.benchmarks.echo", "a")


def test_every_benchmark_of_the_whole_set_exists():
    for name, *_ in everything.RUNS:
        assert (common.ROOT / "benchmarks" / f"{name}.py").exists()
