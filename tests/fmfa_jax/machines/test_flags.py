# SPDX-License-Identifier: Apache-2.0
"""What is set before JAX is imported, and that it is before."""

import subprocess
import sys
from pathlib import Path

import pytest

from fmfa_jax.machines import flags

ROOT = Path(__file__).parents[3]


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """JAX's plugin for NVIDIA, as far as it can be seen without importing it."""
    (tmp_path / "jax_plugins" / "xla_cuda13").mkdir(parents=True)
    (tmp_path / "jax_plugins" / "xla_cuda13" / "__init__.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)


def test_a_host_without_gpus_is_left_alone():
    environ = {}
    flags.set_flags(environ, deterministic=True)
    assert environ == {}


@pytest.mark.usefixtures("plugin")
def test_gpus_overlap_collectives_and_take_the_card():
    environ = {"XLA_FLAGS": "--xla_dump_to=/tmp/x"}
    flags.set_flags(environ)
    assert environ["XLA_FLAGS"].split() == ["--xla_dump_to=/tmp/x", flags.OVERLAPPING]
    assert environ["XLA_CLIENT_MEM_FRACTION"] == "0.92"
    flags.set_flags(environ, deterministic=True)
    assert environ["XLA_FLAGS"].split()[1:] == [flags.OVERLAPPING, flags.REPRODUCIBLE]


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("name", [flags.MEMORY, "XLA_PYTHON_CLIENT_MEM_FRACTION"])
def test_what_the_user_set_stays(name):
    own = "--xla_gpu_enable_latency_hiding_scheduler=false"
    environ = {"XLA_FLAGS": own, name: "0.5"}
    flags.set_flags(environ)
    assert environ == {"XLA_FLAGS": own, name: "0.5"}


def test_flags_are_set_before_jax_is_imported():
    """A config is read before: it decides on `deterministic`."""
    script = """if True:
        import sys
        from fmfa_jax import main
        sys.argv = ["main.py", "--config=configs/cuhk.py"]
        sys.argv += ["--config.run.deterministic"]
        main.parse(sys.argv)
        assert main.CONFIG.value.run.deterministic
        assert "jax" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


@pytest.mark.usefixtures("plugin")
def test_xla_knows_the_flags():
    """An unknown one would end the program."""
    environ = {}
    flags.set_flags(environ, deterministic=True)
    script = "import jax; jax.jit(lambda x: x + 1)(1)"
    given = {"XLA_FLAGS": environ["XLA_FLAGS"], "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", script], env=given, check=True)
