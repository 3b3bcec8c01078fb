# SPDX-License-Identifier: Apache-2.0
"""The check of a card runs anywhere, loses nothing, and times what lowers for CUDA."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from benchmarks import attention, common, profile
from benchmarks.accelerator import __main__ as check
from benchmarks.accelerator import card, repeat, step
from benchmarks.accelerator.run import ON_A_CARD, ON_A_CPU, Run
from tests.benchmarks.conftest import table
from tests.fmfa_jax.training.test_lowering import DEVICES, hopper

__all__ = ["hopper"]  # a fixture, which every test here uses
ABSENT = ("tensorflow", "tensorflow_datasets", "clu", "ftfy", "ml_collections")
ABSENT += ("instant_clip_tokenizer", "transformers", "tensorboard", "absl_py")
FOREVER = float("inf")


def rows_of(folder):
    lines = (folder / "accelerator.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_it_runs_where_only_jax_and_torch_are_installed(tmp_path):
    """Every part is imported, with what its children import, and one runs."""
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys\nsys.modules.update(dict.fromkeys({ABSENT}))\n"
    )
    modules = {part.function.split(".")[0] for part in check.PARTS.values()}
    names = ["fmfa_jax.weights", *(f"benchmarks.accelerator.{m}" for m in modules)]
    imports = "; ".join(f"import {name}" for name in names)
    code = f"{imports}; from benchmarks.accelerator.__main__ import main; main()"
    flags = ("--only", "card", "--cpu", "--until", "1e12")
    done = subprocess.run(
        [sys.executable, "-c", code, *flags, "--out", tmp_path, "--folder", tmp_path],
        capture_output=True,
        text=True,
        cwd=common.ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    found = {row["case"]: row for row in rows_of(tmp_path)}
    assert found["device"]["value"] == "cpu"
    assert found[card.PRODUCT]["value"] > 0


def good(run):
    run.measure("first", lambda: {"ms": 1.25})
    run.measure("broken", lambda: {}["nothing"])
    run.measure("last", lambda: {"ms": 12345.6, "note": run.cpu})


def crashing(run):
    run.measure("before", lambda: {"ms": 2})
    raise RuntimeError("the process died")


def late(run):
    raise AssertionError("it has no time")


def test_a_failure_loses_nothing_else(bench, tmp_path, monkeypatch):
    module = SimpleNamespace(good=good, crashing=crashing, late=late)
    monkeypatch.setitem(sys.modules, "benchmarks.accelerator.fakes", module)
    names = ("good", "crashing")
    fakes = {name: check.Part(name.title(), f"fakes.{name}") for name in names}
    monkeypatch.setattr(check, "PARTS", fakes)
    arguments = ("--out", str(tmp_path), "--minutes", "1")
    out = bench("benchmarks.accelerator", *arguments)
    assert [
        (row["part"], row["case"], "error" in row) for row in rows_of(tmp_path)
    ] == [
        ("good", "first", False),
        ("good", "broken", True),
        ("good", "last", False),
        ("crashing", "before", False),
        ("crashing", "the process", True),
    ]
    _, rows = table("\n" + out.split("## Crashing")[0])
    assert rows == {
        "first": {"ms": "1.25", "note": ""},
        "last": {"ms": "12346", "note": "False"},
    }
    assert "- broken: KeyError: 'nothing'" in out
    assert "- the process: the process died" in out
    # Each table once when its part ends, and all of them at the end.
    assert out.count("## Good") == out.count("## Crashing") == 2
    assert (tmp_path / "accelerator.md").read_text() in out


def test_what_has_no_time_says_so(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "PARTS", {"late": check.Part("Late", "fakes.late")})
    out = bench("benchmarks.accelerator", "--out", str(tmp_path), "--minutes=0")
    assert "- all: left out: the minutes were over" in out
    run = Run("part", tmp_path / "rows", tmp_path, True, until=0)
    run.measure("case", lambda: {"ms": 1})
    assert run.rows("part")[0]["error"] == "left out: the minutes were over"


def test_a_step_beside_the_peer_and_resumed(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(step, "REMATS", ("none",))
    modes = {"deterministic": ("--a_flag", ("first", "resumed"))}
    monkeypatch.setattr(repeat, "MODES", modes)
    arguments = ("--cpu", "--out", str(tmp_path), "--parts", "step", "peer", "repeat")
    bench("benchmarks.accelerator", *arguments)
    found = {(row["part"], row["case"]): row for row in rows_of(tmp_path)}
    assert not [row for row in found.values() if "error" in row]
    ours = found["step", "batch 4, remat none"]
    assert ours["pairs/s"] == pytest.approx(4e3 / ours["ms"])
    # A CPU has no data sheet, and the ceilings were not measured.
    assert ours["MFU %"] is ours["of the product's rate %"] is None
    theirs = found["peer", "torch, float32 with TF32, batch 4"]
    # The fastest of the step's rows at this batch stands beside the peer's.
    rates = [row["pairs/s"] for (part, _), row in found.items() if part == "step"]
    ratio = theirs["ours, times its pairs/s"]
    assert ratio == pytest.approx(max(rates) / theirs["pairs/s"])
    again = found["repeat", "deterministic, resumed"]
    assert again["weights"] == "equal bits"
    assert again["losses apart"] == again["norms of weights apart"] == 0


def test_other_bits_are_told():
    first = {"losses": [2.0], "norms": [1.0, 0.0], "digest": "a", "seconds": 1.0}
    other = first | {"losses": [2.2], "norms": [1.1, 0.0], "digest": "b"}
    row = repeat._beside(other, first)
    assert row["weights"] == "other bits"
    assert row["losses apart"] == pytest.approx(0.1)
    assert row["norms of weights apart"] == pytest.approx(0.1)


def test_attention_as_timed_on_a_card_lowers_for_it():
    for shape in attention.SHAPES.values():
        calls = attention.candidates(shape.mask, "bfloat16", DEVICES["cuda"])
        rows = {
            length: jax.ShapeDtypeStruct((2, length, shape.width), jnp.bfloat16)
            for length in (shape.queries, shape.keys)
        }
        query, key = rows[shape.queries], rows[shape.keys]
        gradient = jax.jit(attention.gradient_of(calls["ours, cuDNN"]))
        traced = gradient.trace(query, key, key, query)
        program = traced.lower(lowering_platforms=("cuda",)).as_text()
        assert "__cudnn$fmhaSoftmaxBackward" in program
    assert "ours, cuDNN" not in attention.candidates("none", "float32", DEVICES["cuda"])
    assert "ours, cuDNN" not in attention.candidates(
        "none", "bfloat16", DEVICES["rocm"]
    )


def test_the_step_as_timed_on_a_card_lowers_for_it(tmp_path):
    run = Run("step", tmp_path / "rows", tmp_path, cpu=True, until=FOREVER)
    case = step.base(run, choices={"scan_unroll": 4})
    whole = case.build(run, DEVICES["cuda"])
    model = whole.method.model
    how = (model.dtype, model.attention, model.products, model.remat, model.scan_unroll)
    assert how == ("bfloat16", "cudnn", "compute", "elementwise", 4)
    state = whole.state_shapes()
    traced = whole.function(state).trace(state, whole.batch_shapes(4))
    assert step.FUSED in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_both_sizes_of_the_check_are_of_one_kind():
    assert vars(ON_A_CARD).keys() == vars(ON_A_CPU).keys()
    assert set(ON_A_CARD.peer_batches) <= set(ON_A_CARD.batches)


PROGRAM = """
  %gemm.1 = (bf16[8,4]{1,0}, s8[32]{0}) custom-call(bf16[8,2] %a, bf16[2,4] %b), \
custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(step)/dot_general"}
  %fmha.2 = (bf16[8,4]{1,0}, u8[0]{0}) custom-call(%q, %k), \
custom_call_target="__cudnn$fmhaSoftmax"
  ROOT %gemm_fusion.3 = f32[8,4]{1,0} fusion(%a, %b), kind=kCustom, \
backend_config={"fusion_backend_config":{"kind":"__triton_gemm"}}
  %loop_transpose_fusion = f32[4,8]{1,0} fusion(%a), kind=kInput
  %loop_convert_fusion.4 = bf16[8]{0} fusion(%a), kind=kLoop
  %input_reduce_fusion = f32[] fusion(%a), kind=kInput
  %all-reduce-start = f32[8]{0} all-reduce-start(%a)
  %while.9 = (s32[], f32[8]{0}) while(%a), condition=%c, body=%b
"""
KINDS = {
    "gemm.1": "products of matrices",
    "fmha.2": "attention in cuDNN",
    "gemm_fusion.3": "products of matrices",
    "loop_transpose_fusion": "copies that transpose an array",
    "loop_convert_fusion.4": "casts, alone or with element-wise work",
    "input_reduce_fusion": "sums and norms of rows",
    "all-reduce-start": "between devices",
}


def test_kernels_of_a_gpu_are_told_apart():
    known = profile.operations(PROGRAM)
    assert known.keys() == {*KINDS, "while.9"}
    for name, kind in KINDS.items():
        assert profile.kind(name, known[name]) == kind
    on = {"ph": "X", "pid": 1, "dur": 3e6, "args": {"hlo_op": "gemm.1"}}
    line = {"ph": "M", "pid": 1, "tid": 7, "name": "thread_name"}
    events = [
        line | {"args": {"name": "Stream #7(Compute)"}},
        on | {"tid": 7},
        on | {"tid": 8},  # the same once more, on a derived line
        on | {"tid": 7, "args": {"hlo_op": "while.9"}},
    ]
    taken = profile.seconds(events)
    assert taken == {"gemm.1": 3.0, "while.9": 3.0}
    lowered = "%1 = stablehlo.dot_general %a, %b : (tensor<8x2xf32>, tensor<2x4xf32>)"
    lowered += "\n%2 = stablehlo.dot_general : (tensor<8x2xbf16>, tensor<2x4xf32>)"
    found = profile.Profile(taken, known, lowered)
    assert found.whole == 3.0
    assert [row["name"] for row in found.kinds()] == ["products of matrices"]
    assert found.longest(5)[0]["where it comes from"] == "jit(step)/dot_general"
    wide = [{"name": "tensor<8x2xf32> x tensor<2x4xf32>", "products": 1}]
    assert found.wide_products() == wide


def test_memory_is_the_compiled_programs_own_report(bench):
    sizes = ("--model", "demo", "--layers", "1", "--batch", "4", "--remat", "none")
    title, rows = table(bench("benchmarks.memory", *sizes))
    assert title == "Memory of fmfa's step, demo"
    (row,) = rows.values()
    assert float(row["program GB"]) > 0
    assert row["fits 12 GB"] == "yes"
