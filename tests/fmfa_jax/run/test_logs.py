# SPDX-License-Identifier: Apache-2.0
"""What a run writes: valid, without duplicates, timed without over-counting."""

import io
import json
import math
import sys

import jax
import numpy as np
import pytest

from fmfa_jax.run import log as logs


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    """Seconds that pass only when told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def open_log(folder, **changes):
    arguments = {
        "start_step": 0,
        "stop_step": 100,
        "pairs_per_step": 8,
        "tensorboard": False,
        "stream": io.StringIO(),
    }
    return logs.open_log(folder, **(arguments | changes))


def lines_of(folder):
    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def test_metrics_are_one_json_object_a_line(tmp_path):
    with open_log(tmp_path) as log:
        log.scalars(1, 0.5, {"total": np.float32(2.5), "lr": 1e-5})
        # Already on disk, without waiting for the end of the run.
        assert lines_of(tmp_path) == [
            {"step": 1, "epoch": 0.5, "total": 2.5, "lr": 1e-5}
        ]
        log.scalars(2, 1, {"total": math.nan, "id": -math.inf})
    assert lines_of(tmp_path)[1] == {"step": 2, "epoch": 1, "total": None, "id": None}


def test_resuming_drops_the_lines_that_are_computed_again(tmp_path):
    with open_log(tmp_path) as log:
        for step in range(1, 7):
            log.scalars(step, 0, {"total": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "tot')  # killed while writing
    stream = io.StringIO()
    with open_log(tmp_path, start_step=4, stream=stream) as log:
        log.scalars(5, 0, {"total": 50})
    assert [(line["step"], line["total"]) for line in lines_of(tmp_path)] == [
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 4),
        (5, 50),
    ]
    assert "dropped 3 lines after step 4" in stream.getvalue()


def test_resuming_after_the_last_line_keeps_all_in_silence(tmp_path):
    with open_log(tmp_path) as log:
        log.scalars(4, 0, {"total": 4})
    stream = io.StringIO()
    with open_log(tmp_path, start_step=4, stream=stream):
        pass
    assert len(lines_of(tmp_path)) == 1 and stream.getvalue() == ""


def test_progress_counts_the_steps_between_two_calls(tmp_path):
    clock, stream = Clock(), io.StringIO()
    with open_log(tmp_path, start_step=10, clock=clock, stream=stream) as log:
        clock.now += 50  # the first steps include the compilation
        assert log.step(20, 0, {"total": 1.23456})["steps_per_second"] == 0.2
        clock.now += 5
        with log.paused():
            clock.now += 1000  # an evaluation
        clock.now += 5
        speeds = log.step(40, 0, {"total": 1.0, "lr": 1e-05})
        assert log.step(40, 0, {}) == {}
    assert speeds == {"steps_per_second": 2.0, "pairs_per_second": 16.0}
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("step 20/100  total 1.235  0.2 steps/s  1.6 pairs/s")
    # 60 steps are left at 2 steps/s: the compiling lap takes no part.
    assert lines[1] == (
        "step 40/100  total 1  lr 1e-05  2 steps/s  16 pairs/s  ETA 0:00:30"
    )
    assert "\r" not in stream.getvalue()


def test_flops_are_shown_as_a_share_of_the_peak_where_it_is_known(tmp_path):
    clock, stream = Clock(), io.StringIO()
    with open_log(tmp_path, clock=clock, stream=stream, peak_flops=4e12) as log:
        clock.now += 2
        speeds = log.step(1, 0, {}, flops=2 * 10**12)
    assert speeds["model_flops_per_second"] == 1e12
    assert speeds["mfu"] == 0.25
    assert "MFU 25.0%" in stream.getvalue()
    with open_log(tmp_path, clock=clock, stream=stream) as log:
        clock.now += 2
        speeds = log.step(1, 0, {}, flops=2 * 10**12)
    assert speeds["model_flops_per_second"] == 1e12 and "mfu" not in speeds


def test_a_long_eta_has_hours(tmp_path):
    clock, stream = Clock(), io.StringIO()
    with open_log(tmp_path, clock=clock, stream=stream) as log:
        clock.now += 40
        log.step(1, 0, {})
    assert "ETA 1:06:00" in stream.getvalue()


def test_not_a_number_can_be_shown(tmp_path):
    stream = io.StringIO()
    with open_log(tmp_path, stream=stream) as log:
        log.step(1, 0, {"total": math.nan, "id": math.inf})
    assert "total nan  id inf" in stream.getvalue()


def test_on_a_terminal_the_line_is_replaced_and_others_stand_alone(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "30")
    clock, terminal = Clock(), Terminal()
    with open_log(tmp_path, clock=clock, stream=terminal) as log:
        clock.now += 1
        log.step(1, 0, {"total": 2.0, "a_long_name": 3.0})
        clock.now += 1
        log.step(2, 0, {"total": 2.0})
        log.say("saved")
        log.step(3, 0, {})
    pieces = terminal.getvalue().split("\r")
    assert pieces[0] == "" and len(pieces) == 4
    assert pieces[1].startswith("step 1/100") and "\n" not in pieces[1]
    shown = [piece.split("\x1b[K")[0] for piece in pieces[1:]]
    assert all(len(line) < 30 for line in shown)  # a wrapped line stays on the screen
    assert pieces[2].endswith("\x1b[K\nsaved\n")
    assert pieces[3].endswith("\n")


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    stream, folder = io.StringIO(), tmp_path / "run"
    with open_log(folder, tensorboard=True, stream=stream) as log:
        log.scalars(1, 0, {"total": 1.0})
        log.say("text")
        assert "steps_per_second" in log.step(1, 0, {})
    assert not folder.exists() and stream.getvalue() == ""


def test_without_clu_the_run_goes_on_and_says_so_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "clu", None)
    stream = io.StringIO()
    with open_log(tmp_path, tensorboard=True, stream=stream) as log:
        log.scalars(1, 0, {"total": 1.0})
        log.scalars(2, 0, {"total": 1.0})
    assert stream.getvalue().count("no TensorBoard events") == 1
    assert len(lines_of(tmp_path)) == 2


def test_tensorboard_reads_the_events(tmp_path):
    pytest.importorskip("clu", reason="accelerator hosts may lack TensorFlow and clu")
    with open_log(tmp_path, tensorboard=True) as log:
        log.scalars(3, 0, {"loss/total": 1.5})
        log.scalars(4, 0, {"loss/total": 1.25})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = {
        (event.step, make_ndarray(event.tensor_proto).item())
        for event in events.Tensors("loss/total")
    }
    assert found == {(3, 1.5), (4, 1.25)}
