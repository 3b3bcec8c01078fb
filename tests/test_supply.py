# SPDX-License-Identifier: Apache-2.0
"""What is installed: pinned, with hashes, in tested ranges, under known licences."""

import re
import tomllib
from importlib.metadata import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fmfa_jax
from docs import licences

ROOT = Path(__file__).parents[1]
LOCKS = ("requirements.lock", "requirements-dev.lock", "requirements-onnx.txt")
SITE = "requirements-docs.txt"
WANTED = {
    "requirements.lock": "requirements.txt",
    "requirements-dev.lock": "requirements-dev.txt",
}
# Where `make` installs; the torch that tests compare with is apart.
MACHINES = [
    {"python_version": python, "python_full_version": f"{python}.7"}
    | {"platform_machine": machine, "sys_platform": "linux"}
    for python in ("3.11", "3.12")
    for machine in ("x86_64", "aarch64")
]


def entries(name: str) -> list[tuple[Requirement, int]]:
    """Each requirement of a file, and how many hashes it has."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and line[0] not in "# "]
    return [
        (Requirement(line.split("--hash")[0].strip()), line.count("--hash=sha256:"))
        for line in lines
    ]


def versions(name: str, machine: dict[str, str]) -> dict[str, str]:
    """Package -> version that a lock has for a machine."""
    found: dict[str, str] = {}
    for each, _ in entries(name):
        if each.marker is None or each.marker.evaluate(machine):
            assert canonicalize_name(each.name) not in found, "two versions at once"
            (pin,) = each.specifier
            found[canonicalize_name(each.name)] = pin.version
    return found


@pytest.mark.parametrize("lock", [*LOCKS, SITE])
def test_every_package_has_one_version_and_its_hashes(lock):
    assert entries(lock)
    for each, hashes in entries(lock):
        (pin,) = each.specifier
        assert pin.operator == "==" and hashes > 0, each


@pytest.mark.parametrize("lock", WANTED)
@pytest.mark.parametrize("machine", MACHINES, ids=str)
def test_locked_versions_are_in_the_tested_ranges(lock, machine):
    found = versions(lock, machine)
    for each, _ in entries(WANTED[lock]):
        if each.marker is None or each.marker.evaluate(machine):
            assert found[canonicalize_name(each.name)] in each.specifier, each


@pytest.mark.parametrize("machine", MACHINES, ids=str)
def test_locks_agree_where_they_meet(machine):
    product, *others = (versions(lock, machine) for lock in [*LOCKS, SITE])
    for other in others:
        shared = product.keys() & other.keys()
        assert {k: product[k] for k in shared} == {k: other[k] for k in shared}


PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = {
    extra: {(each := Requirement(text)).name: each.specifier for text in texts}
    for extra, texts in PYPROJECT["project"]["optional-dependencies"].items()
}


def test_pip_installs_what_make_does():
    assert set(PYPROJECT["project"]["dynamic"]) == {"version", "dependencies"}
    dynamic = PYPROJECT["tool"]["setuptools"]["dynamic"]
    assert dynamic["dependencies"] == {"file": "requirements.txt"}


@pytest.mark.parametrize(
    ("extra", "lock"),
    [
        ("faiss", "requirements-dev.lock"),
        ("gcs", "requirements-dev.lock"),
        ("onnx", "requirements-onnx.txt"),
        ("qdrant", "requirements-dev.lock"),
        ("s3", "requirements-dev.lock"),
        ("search", "requirements.lock"),
    ],
)
def test_extras_are_tested_in_locked_versions(extra, lock):
    found = versions(lock, MACHINES[0])
    assert all(found[name] in wanted for name, wanted in EXTRAS[extra].items())


@pytest.mark.parametrize("extra", ["cuda", "tpu"])
def test_extras_for_accelerators_are_those_of_jax(extra):
    (text,) = PYPROJECT["project"]["optional-dependencies"][extra]
    wanted = Requirement(text)
    assert wanted.extras <= set(metadata(wanted.name).get_all("Provides-Extra"))


def test_the_extra_for_onnx_is_all_but_its_converter():
    """Whose own pins could not be met; see requirements-onnx.txt."""
    listed = {canonicalize_name(each.name) for each, _ in entries(LOCKS[2])}
    assert listed - EXTRAS["onnx"].keys() == {"jax2onnx"}


def test_what_builds_the_wheel_is_there_for_its_test():
    (wanted,) = map(Requirement, PYPROJECT["build-system"]["requires"])
    found = versions("requirements-dev.lock", MACHINES[0])
    assert found[wanted.name] in wanted.specifier


def test_the_version_is_that_of_the_changelog_and_the_citation():
    newest = re.search(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest[1] == fmfa_jax.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == fmfa_jax.__version__
    readme = (ROOT / "README.md").read_text()
    cited = {each["url"] for each in citation["references"]}
    assert set(re.findall(r"https://arxiv\.org/abs/[\d.]+", readme)) <= cited


def test_the_list_of_licences_is_that_of_the_locks():
    """Made anew; the versions installed here need not be the locked ones."""
    files = [file for group in licences.LOCKS.values() for file in group]
    assert {*LOCKS, "requirements-torch.txt"} == set(files)
    page = licences.page({file: (ROOT / file).read_text() for file in files})
    assert (ROOT / "docs" / "licences.md").read_text() == page
    assert "not stated" not in page
