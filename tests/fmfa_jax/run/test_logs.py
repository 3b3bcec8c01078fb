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
from fmfa_jax.run import writers
from fmfa_jax.run.speed import Speed, compilations


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


class Programs:
    """Compilations that happen only when told."""

    def __init__(self):
        self.count = 0

    def __call__(self):
        return self.count


def test_progress_counts_the_steps_between_two_calls(tmp_path):
    clock, stream = Clock(), io.StringIO()
    with open_log(tmp_path, start_step=10, clock=clock, stream=stream) as log:
        clock.now += 50
        assert log.step(20, 0, {"total": 1.23456})["steps_per_second"] == 0.2
        clock.now += 5
        with log.paused():
            clock.now += 1000  # an evaluation
        clock.now += 5
        speeds = log.step(40, 0, {"total": 1.0, "lr": 1e-05})
        assert log.step(40, 0, {}) == {}
    assert speeds == {"steps_per_second": 2.0, "pairs_per_second": 16.0}
    lines = stream.getvalue().splitlines()
    assert lines[0] == "step 20/100  total 1.235  0.2 steps/s  1.6 pairs/s"
    # 60 steps are left after 30 in 60 s.
    assert lines[1] == (
        "step 40/100  total 1  lr 1e-05  2 steps/s  16 pairs/s  ETA 0:02:00"
    )
    assert not {"\r", "\x1b"} & set(stream.getvalue())


def test_what_compiles_takes_no_part_in_the_eta():
    clock, programs = Clock(), Programs()
    speed = Speed(
        start_step=0, stop_step=100, pairs_per_step=8, clock=clock, compiled=programs
    )

    def left(step, seconds, *, compiles=0):
        clock.now += seconds
        programs.count += compiles
        return speed.lap(step).get("seconds_left")

    assert left(1, 500, compiles=3) is None
    assert left(10, 9) is None
    assert left(20, 300, compiles=1) is None  # captions of another length
    with speed.paused():
        clock.now += 1000
        programs.count += 5  # an evaluation has programs of its own
    assert left(30, 11) == 70 * (9 + 11) / (9 + 10)
    assert left(40, 100, compiles=1) == 60 * (9 + 11) / (9 + 10)
    assert left(100, 60) == 0


def test_jax_tells_of_each_program_that_it_compiles():
    before = compilations()()
    compute = jax.jit(lambda x: x * 3 + before)
    compute(np.float32(1))
    once = compilations()()
    assert once > before
    compute(np.float32(2))
    assert compilations()() == once


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
        for step in (1, 2):
            clock.now += 40
            log.step(step, 0, {})
    assert stream.getvalue().endswith("  ETA 1:05:20\n")


def test_not_a_number_can_be_shown(tmp_path):
    stream = io.StringIO()
    with open_log(tmp_path, stream=stream) as log:
        log.step(1, 0, {"total": math.nan, "id": math.inf})
    assert "total nan  id inf" in stream.getvalue()


VALUES = {"efa": 0.25, "grad_norm": 7.0, "id": 1.5, "lr": 1e-5, "total": 2.0}
PACE = {"steps_per_second": 2.0, "pairs_per_second": 16.0, "seconds_left": 3661.0}


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (
            100,
            "[################................]  50%  step 50/100  total 2  id 1.5  "
            "16 pairs/s  ETA 1:01:01",
        ),
        (71, "[####....]  50%  step 50/100  total 2  id 1.5  16 pairs/s  ETA 1:01:01"),
        (60, " 50%  step 50/100  total 2  id 1.5  16 pairs/s  ETA 1:01:01"),
        (52, " 50%  step 50/100  total 2  16 pairs/s  ETA 1:01:01"),
        (43, " 50%  step 50/100  16 pairs/s  ETA 1:01:01"),
        (31, " 50%  step 50/100  ETA 1:01:01"),
        (20, " 50%  step 50/100"),
        (10, " 50%  ste"),
    ],
)
def test_a_terminal_shows_what_fits_whole(monkeypatch, width, line):
    monkeypatch.setenv("COLUMNS", str(width))
    stream = Terminal()
    terminal = writers.Terminal(stop_step=100, losses=("total", "id"), stream=stream)
    terminal.progress(50, VALUES, PACE)
    assert stream.getvalue() == f"\r{line}\x1b[K"
    assert len(line) < width  # a line that wraps stays on the screen


def test_on_a_terminal_the_line_is_replaced_and_others_stand_below(tmp_path):
    stream = Terminal()
    with open_log(tmp_path, stream=stream, losses=("total",)) as log:
        log.step(1, 0, {"total": 2.0, "skipped": 0.0})
        log.step(2, 0, {"total": 2.0, "skipped": 0.0})
        log.say("saved")
        log.step(3, 0, {"total": math.nan, "skipped": 1.0})
        log.step(4, 0, {"total": 2.0, "skipped": 1.0})
    # As the terminal has it in the end.
    shown = [row.split("\r")[-1] for row in stream.getvalue().split("\n")]
    parts = ["step 2/100  total 2", "saved", "step 3/100  total nan"]
    parts += [
        "warning: 1 step(s) skipped up to step 3: loss or gradient was not finite"
    ]
    parts += ["step 4/100  total 2", ""]
    assert len(shown) == len(parts)
    for row, part in zip(shown, parts, strict=True):
        assert part in row


def test_names_from_files_are_escaped(tmp_path):
    stream = io.StringIO()
    with open_log(tmp_path, stream=stream) as log:
        log.say("one\x1b[2J\ntwo\r\u202e")
    assert stream.getvalue() == "one\\x1b[2J\ntwo\\r\\u202e\n"


def test_a_terminal_that_knows_no_codes_is_none(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    writers.Terminal(stop_step=100, stream=stream).progress(1, VALUES, {})
    assert stream.getvalue().endswith("\n")
    assert not {"\r", "\x1b"} & set(stream.getvalue())


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
