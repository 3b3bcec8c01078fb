# SPDX-License-Identifier: Apache-2.0
"""The launch files of deploy/ are well formed and say what the program reads.

No launcher is here to try them: its part is played by the environment that it sets.
"""

import inspect
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jax._src.clusters import cloud_tpu_cluster, slurm_cluster

from data_pipeline.buckets import PACKAGES
from fmfa_jax.machines import launchers
from fmfa_jax.machines.launchers import Launch, launch

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
SCRIPTS = sorted(DEPLOY.glob("*.sh"))
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
WORDS = [
    "main.py",
    "--config=configs/cuhk.py",
    "--config.model.image_size=(64, 32)",
    "--x=a'b",
]
# What a pod gets from the cluster, not from the manifest.
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


def resources(name: str) -> dict[str, dict]:
    """The resources of a manifest by kind."""
    text = (DEPLOY / "kubernetes" / name).read_text()
    return {each["kind"]: each for each in yaml.safe_load_all(text)}


def job_of(resource: dict) -> dict:
    """The spec of a Job, also of the one Job that a JobSet repeats."""
    if resource["kind"] == "Job":
        return resource["spec"]
    (replicated,) = resource["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 1
    return replicated["template"]["spec"]


def parts(job: dict) -> tuple[dict, dict, dict[str, str]]:
    """The pod, its container and what that sets."""
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    pairs = {each["name"]: each["value"] for each in container.get("env", [])}
    return pod, container, pairs


def first_pod(kinds: dict[str, dict]) -> str:
    """The name under which the other pods reach the first one."""
    if "JobSet" not in kinds:
        service, job = kinds["Service"], kinds["Job"]
        name, domain = job["metadata"]["name"], service["metadata"]["name"]
        assert job_of(job)["template"]["spec"]["subdomain"] == domain
        assert service["spec"]["selector"] == {"job-name": name}
        assert service["spec"]["clusterIP"] == "None"
        assert service["spec"]["publishNotReadyAddresses"] is True
        return f"{name}-0.{domain}"
    name = kinds["JobSet"]["metadata"]["name"]
    (replicated,) = kinds["JobSet"]["spec"]["replicatedJobs"]
    return f"{name}-{replicated['name']}-0-0.{name}"


@pytest.mark.parametrize("name", ["job.yaml", "jobset.yaml"])
def test_each_pod_of_a_job_joins_the_others(name):
    kinds = resources(name)
    job = job_of(kinds.get("JobSet") or kinds["Job"])
    _, _, environ = parts(job)
    for index in range(job["completions"]):
        given = POD | environ | {"JOB_COMPLETION_INDEX": str(index)}
        wanted = {
            "coordinator_address": f"{first_pod(kinds)}:8476",
            "num_processes": job["parallelism"],
            "process_id": index,
            "cluster_detection_method": "deactivate",
        }
        assert launch(given) == Launch("environment", wanted)


def test_gke_tells_the_pods_of_a_slice_of_each_other():
    kinds = resources("gke_tpu.yaml")
    job = job_of(kinds["JobSet"])
    pod, container, environ = parts(job)
    chips = container["resources"]["limits"]["google.com/tpu"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    assert chips * job["completions"] == math.prod(map(int, topology.split("x")))
    assert environ == {}
    hosts = {"TPU_WORKER_HOSTNAMES": "a,b,c,d", "TPU_WORKER_ID": "1"}
    slices = {"MEGASCALE_COORDINATOR_ADDRESS": "a:8080", "MEGASCALE_NUM_SLICES": "2"}
    for given in (hosts, hosts | slices):
        found = launch(POD | {"JOB_COMPLETION_INDEX": "1"} | given)
        assert found == Launch("tpu")


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_runs_a_config_and_leaves_time_to_save(path):
    kinds = resources(path.name)
    job = job_of(kinds.get("JobSet") or kinds["Job"])
    pod, container, _ = parts(job)
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"] > 1
    assert container["command"][:2] == ["python", "main.py"]
    (config,) = [w for w in container["command"] if w.startswith("--config=")]
    assert (ROOT / config.removeprefix("--config=")).is_file()
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] >= 60
    mounts = {each["name"] for each in container["volumeMounts"]}
    assert mounts == {each["name"] for each in pod["volumes"]}


@pytest.mark.parametrize(
    "path", [*SCRIPTS, *MANIFESTS, DEPLOY / "Dockerfile"], ids=lambda path: path.name
)
def test_every_variable_that_is_named_is_read(path):
    sources = (launchers, cloud_tpu_cluster, slurm_cluster)
    read = "".join(map(inspect.getsource, sources))
    named = set(re.findall(r"\b(?:[A-Z]+_)+[A-Z]+\b", path.read_text()))
    assert {name for name in named if not re.search(rf"\b{name}\b", read)} == set()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_well_formed(path):
    subprocess.run(["bash", "-n", path], check=True)
    said = "\n".join(re.findall(r"^# .*", path.read_text(), re.M))
    (config,) = re.findall(r"--config=(\S+)", said)
    assert (ROOT / config).is_file()


def stand_in(folder: Path, name: str, code: int = 0) -> None:
    """Make a program that notes its arguments in NAME.json."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    note = folder / f"{path.name}.json"
    path.write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        f"json.dump(sys.argv[1:], open({str(note)!r}, 'w'))\nsys.exit({code})\n"
    )
    path.chmod(0o755)


def run_in(folder: Path, *words: str | Path, **variables: str) -> int:
    environ = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"} | variables
    return subprocess.run(["bash", *words], cwd=folder, env=environ).returncode


@pytest.mark.parametrize("code", [0, 1, 75])
def test_a_slurm_job_that_was_stopped_is_queued_again(tmp_path, code):
    stand_in(tmp_path, "srun", code)
    stand_in(tmp_path, "scontrol")
    script = DEPLOY / "slurm.sh"
    assert run_in(tmp_path, script, *WORDS, SLURM_JOB_ID="7") == code
    words = json.loads((tmp_path / "srun.json").read_text())
    assert words[-len(WORDS) - 1 :] == [".venv/bin/python", *WORDS]
    again = tmp_path / "scontrol.json"
    assert again.exists() == (code == 75)
    if code == 75:
        assert json.loads(again.read_text()) == ["requeue", "7"]


def test_the_tasks_of_a_slurm_job_see_all_gpus_of_their_node():
    text = (DEPLOY / "slurm.sh").read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", text, re.M))
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert "gpus-per-task" not in options
    assert re.fullmatch(r"TERM@\d+", options["signal"])


def test_a_tpu_vm_gets_the_words_as_they_were_given(tmp_path):
    stand_in(tmp_path, "gcloud")
    assert run_in(tmp_path, DEPLOY / "tpu_vm.sh", "slice", "zone", *WORDS) == 0
    words = json.loads((tmp_path / "gcloud.json").read_text())
    assert words[4] == "slice" and {"--zone=zone", "--worker=all"} < set(words)
    stand_in(tmp_path / "fmfa-jax", ".venv/bin/python")
    (command,) = [w for w in words if w.startswith("--command=")]
    assert run_in(tmp_path, "-c", command.removeprefix("--command=")) == 0
    noted = tmp_path / "fmfa-jax" / "python.json"
    assert json.loads(noted.read_text()) == WORDS


def test_the_files_that_the_page_names_are_there():
    page = (ROOT / "docs" / "launching.md").read_text()
    named = set(re.findall(r"deploy/[\w./]*\w", page))
    files = {path for path in DEPLOY.rglob("*") if path.is_file()}
    assert {ROOT / name for name in named} == files


def instructions() -> list[tuple[str, str]]:
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and line[0] != "#"]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def test_the_image_has_the_program_and_what_is_locked():
    found = instructions()
    assert found[0][0] == "FROM" and ":" in found[0][1]
    known = {"FROM", "ARG", "WORKDIR", "COPY", "RUN", "USER", "CMD"}
    assert {word for word, _ in found} <= known
    runs = [rest for word, rest in found if word == "RUN"]
    assert any("--require-hashes -r requirements.lock" in rest for rest in runs)
    assert any('"jax[${MACHINE}]==' in rest for rest in runs)
    assert any({*PACKAGES.values()} <= {*rest.split()} for rest in runs)
    assert [rest for word, rest in found if word == "USER"] == ["1000"]
    assert json.loads(found[-1][1])[:2] == ["python", "main.py"]


def test_what_the_image_copies_is_there_and_not_ignored():
    copied = [
        w for word, rest in instructions() if word == "COPY" for w in rest.split()
    ]
    sources = {word for word in copied if word != "./"}
    assert all((ROOT / source).exists() for source in sources)
    ignored = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert ignored[0] == "*"
    assert {line[1:] for line in ignored if line[0] == "!"} == sources
    packages = {"configs", "data_pipeline", "fmfa_jax"}
    assert packages | {"main.py", "requirements.lock"} <= sources
