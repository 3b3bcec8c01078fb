# SPDX-License-Identifier: Apache-2.0
"""Trackers of experiments: what they are told, and that none stops a run.

Where a package is absent, a stand-in notes what its API is told; where it is there, the
same run is read back from the files that the package wrote.
"""

import io
import json
import math
import struct
import sys
import threading
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest

from fmfa_jax.run import log as logs
from fmfa_jax.run.writers import background

BLOCK = 1 << 15
CONFIG = {"method": "fmfa", "train.epochs": 2, "model.image_size": (64, 32)}


def run(folder, *steps, stream=None, **trackers):
    """A run of one process that logs these steps."""
    log = logs.open_log(
        folder,
        start_step=steps[0] - 1,
        stop_step=9,
        pairs_per_step=8,
        tensorboard=False,
        config=CONFIG,
        stream=stream or io.StringIO(),
        **trackers,
    )
    with log:
        for step in steps:
            log.scalars(step, step / 4, {"total": step / 2, "val/r1": math.nan})
    return folder


@pytest.fixture
def folder(tmp_path):
    """The folder of a run that has been evaluated."""
    made = tmp_path / "demo"
    (made / "eval" / "9").mkdir(parents=True)
    (made / "eval" / "9" / "table.md").write_text("| R1 |")
    (made / "curves.png").write_bytes(b"png")
    (made / "config.json").write_text("{}")
    (made / "model_last.safetensors").write_bytes(b"large")
    return made


FILES = {"config.json", "curves.png", "eval/9/table.md"}


class FakeWandB(ModuleType):
    """Notes what wandb is told; `broken` names a call that fails."""

    def __init__(self, broken=""):
        super().__init__("wandb")
        self.told, self.broken = [], broken

    def init(self, **settings):
        self._note("init", settings)
        run = SimpleNamespace(id=settings["id"])
        for call in ("define_metric", "log", "log_artifact", "finish"):
            setattr(
                run, call, lambda *what, _call=call, **more: self._note(_call, what)
            )
        return run

    def Settings(self, **settings):
        return settings

    def Image(self, path):
        return path

    def Artifact(self, name, type):
        files = []
        return SimpleNamespace(
            files=files, add_file=lambda path, name: files.append(name)
        )

    def _note(self, call, what):
        if call == self.broken:
            raise ConnectionError("no network\nand more")
        self.told.append((call, what))

    def calls(self, name):
        return [what for call, what in self.told if call == name]


@pytest.fixture
def wandb(monkeypatch):
    fake = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_is_told_scalars_config_and_results(folder, wandb):
    run(folder, 1, 2, wandb="people")
    (begun,) = wandb.calls("init")
    assert (begun["project"], begun["name"]) == ("people", "demo")
    assert begun["config"] == CONFIG and begun["dir"] == str(folder)
    entries = [what[0] for what in wandb.calls("log")]
    assert [each["step"] for each in entries if "total" in each] == [1, 2]
    assert entries[1]["total"] == 1 and math.isnan(entries[1]["val/r1"])
    assert {"curves.png": str(folder / "curves.png")} in entries
    ((results,),) = wandb.calls("log_artifact")
    assert FILES < set(results.files) and not [n for n in results.files if "model" in n]
    assert wandb.told[-1][0] == "finish"


def test_a_restart_goes_on_with_the_same_run_of_wandb(folder, wandb):
    run(folder, 1, 2, wandb="people")
    run(folder, 2, 3, wandb="people")
    run(folder, 1, wandb="others")
    first, second, third = wandb.calls("init")
    assert first["id"] == second["id"] != third["id"]
    assert second["resume"] == "allow"


class FakeClient:
    """Notes what an MlflowClient is told; all clients share their runs."""

    tracking_uri = "file:///there"
    told: ClassVar[list] = []

    def get_experiment_by_name(self, name):
        known = [what for call, what in self.told if call == "create_experiment"]
        return SimpleNamespace(experiment_id="7") if (name,) in known else None

    def create_run(self, experiment, run_name):
        self.told.append(("create_run", (experiment, run_name)))
        number = sum(call == "create_run" for call, _ in self.told)
        return SimpleNamespace(info=SimpleNamespace(run_id=f"run {number}"))

    def create_experiment(self, name):
        self.told.append(("create_experiment", (name,)))
        return "7"

    def __getattr__(self, call):
        def note(*what, **more):
            self.told.append((call, (*what, *more.items())))

        return note

    def calls(self, name):
        return [what for call, what in self.told if call == name]


@pytest.fixture
def mlflow(monkeypatch):
    fake, client = ModuleType("mlflow"), type("Client", (FakeClient,), {"told": []})
    fake.MlflowClient = client
    fake.entities = SimpleNamespace(
        Param=lambda key, value: (key, value),
        Metric=lambda key, value, timestamp, step: (key, value, step),
    )
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    return client()


def test_mlflow_is_told_scalars_config_and_results(folder, mlflow):
    run(folder, 1, 2, mlflow="people")
    assert mlflow.calls("create_run") == [("7", "demo")]
    params, *metrics = mlflow.calls("log_batch")
    assert params == (
        "run 1",
        ("params", [(key, str(value)) for key, value in CONFIG.items()]),
    )
    assert [each[1][1][:2] for each in metrics] == [
        [("epoch", step / 4, step), ("total", step / 2, step)] for step in (1, 2)
    ]
    sent = {(file, place) for _, file, place in mlflow.calls("log_artifact")}
    assert (str(folder / "eval/9/table.md"), "eval/9") in sent
    assert not [file for file, _ in sent if "model" in file]
    assert mlflow.told[-1] == ("set_terminated", ("run 1",))


def test_a_restart_goes_on_with_the_same_run_of_mlflow(folder, mlflow):
    run(folder, 1, 2, mlflow="people")
    run(folder, 2, 3, mlflow="people")
    assert len(mlflow.calls("create_run")) == 1
    assert mlflow.calls("update_run") == [("run 1", ("status", "RUNNING"))]
    assert {what[0] for what in mlflow.calls("log_batch")} == {"run 1"}
    type(mlflow).tracking_uri = "file:///elsewhere"
    run(folder, 3, mlflow="people")
    assert mlflow.calls("create_run") == [("7", "demo")] * 2
    assert len(mlflow.calls("create_experiment")) == 1


@pytest.mark.parametrize("call", ["init", "log", "log_artifact", "finish"])
def test_a_tracker_that_fails_is_said_once_and_stops_nothing(folder, wandb, call):
    wandb.broken, stream = call, io.StringIO()
    run(folder, *range(1, 9), stream=stream, wandb="people")
    said = stream.getvalue()
    assert said.count("warning: ") == said.count("\n") == 1
    assert "Weights & Biases: ConnectionError: no network; the run goes on" in said
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 9))


@pytest.mark.parametrize(
    ("package", "name"), [("wandb", "Weights & Biases"), ("mlflow", "MLflow")]
)
def test_a_package_that_is_absent_is_said(folder, monkeypatch, package, name):
    class Absent:
        def find_spec(self, wanted, path=None, target=None):
            if wanted.partition(".")[0] == package:
                raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, package, raising=False)
    stream = io.StringIO()
    run(folder, 1, stream=stream, **{package: "people"})
    assert f"warning: {name}: No module named '{package}'" in stream.getvalue()
    assert f"pip install {package};" in stream.getvalue()


def test_a_tracker_that_hangs_is_left_behind(folder, wandb, monkeypatch):
    monkeypatch.setattr(background, "CLOSE_SECONDS", 0.1)
    released, stream = threading.Event(), io.StringIO()
    monkeypatch.setattr(wandb, "init", lambda **settings: released.wait())
    run(folder, 1, stream=stream, wandb="people")
    released.set()
    assert "it did not end within" in stream.getvalue()


def test_only_the_first_process_tracks(folder, wandb, monkeypatch):
    monkeypatch.setattr(logs.jax, "process_index", lambda: 1)
    run(folder, 1, wandb="people")
    assert wandb.told == []


def test_the_real_mlflow_writes_a_run_that_can_be_read(folder, monkeypatch, tmp_path):
    real = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    stream = io.StringIO()
    run(folder, 1, 2, stream=stream, mlflow="people")
    run(folder, 2, 3, stream=stream, mlflow="people")
    assert stream.getvalue().count("warning") == 0, stream.getvalue()
    client = real.MlflowClient(f"file://{tmp_path}/mlruns")
    experiment = client.get_experiment_by_name("people")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED" and found.info.run_name == "demo"
    assert found.data.params == {key: str(value) for key, value in CONFIG.items()}
    history = client.get_metric_history(found.info.run_id, "total")
    assert sorted((m.step, m.value) for m in history) == [
        (1, 0.5),
        (2, 1),
        (2, 1),
        (3, 1.5),
    ]
    files = {each.path for each in client.list_artifacts(found.info.run_id)}
    assert {"config.json", "curves.png", "eval"} <= files


def test_the_real_wandb_writes_offline(folder, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    (folder / "curves.png").unlink()  # which is none
    stream = io.StringIO()
    run(folder, 1, 2, stream=stream, wandb="people")
    run(folder, 2, 3, stream=stream, wandb="people")
    assert "warning" not in stream.getvalue()
    known = json.loads((folder / "wandb.json").read_text())
    written = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(written) == 2 and all(known["id"] in str(each) for each in written)
    logged = [[(e["step"], e["total"]) for e in entries(each)] for each in written]
    assert logged == [[("1", "0.5"), ("2", "1")], [("2", "1"), ("3", "1.5")]]


def entries(path):
    """Yield the entries of a log of wandb, which lie in blocks as LevelDB's do."""
    from wandb.proto import wandb_internal_pb2 as records

    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := BLOCK - place % BLOCK) < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record, whole = records.Record.FromString(whole), b""
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                yield {each.nested_key[0]: each.value_json for each in items}
