# SPDX-License-Identifier: Apache-2.0
"""What training and evaluation share: devices, data, sizes, first parameters."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipeline.records import PersonDataset
from data_pipeline.tokenizer import Tokenizer, open_tokenizer
from fmfa_jax import models, weights
from fmfa_jax.machines.mesh import check_batch_size, make_mesh, replicated
from fmfa_jax.machines.processes import (
    Processes,
    agree,
    check_shared,
    initialize_distributed,
    together,
)
from fmfa_jax.run.environment import code_version
from fmfa_jax.training import settings as build


@dataclass(frozen=True)
class Session:
    """A config, opened: everything but the train state.

    Attributes:
        config: the run's configuration.
        workdir: the run's folder.
        processes: this process among all.
        mesh: all devices.
        data: the data set.
        tokenizer: of the captions.
        model: sizes of the model that is trained.
    """

    config: ConfigDict
    workdir: Path
    processes: Processes
    mesh: Mesh
    data: PersonDataset
    tokenizer: Tokenizer
    model: models.ModelConfig

    def data_identity(self) -> dict[str, Any]:
        """What of the data decides a run; the weak memory has one row a pair."""
        return {
            "data.pairs": len(self.data.train.pairs),
            "data.fingerprint": self.data.fingerprint,
        }


def open_session(config: ConfigDict, workdir: str) -> Session:
    """Join the other processes, open the data, settle all sizes.

    Raises:
        ValueError: a value that no part knows, a batch that does not divide over the
            devices, a data set without captions to evaluate on, or processes that
            disagree.
        FileNotFoundError: the data set is not there; says what was looked for.
    """
    processes = initialize_distributed()
    if config.run.compilation_cache:
        keep_programs(config.run.compilation_cache, processes)
    with together("opening the run"):
        build.validate(config)
        mesh = make_mesh(fsdp=config.mesh.fsdp)
        check_batch_size(config.train.batch_size, mesh, chunks=config.train.chunks)
        check_batch_size(config.eval.batch_size, mesh)
        data = build.dataset(config)
        # Asked for now, because a missing split would only be told after the training.
        for name in {build.chosen_on(config, data), "test"}:
            data.evaluation_split(name)
        tokenizer = open_tokenizer(config.data.tokenizer)
        classes = len(data.train.identities)
        model = build.model_config(config, tokenizer, classes=classes)
    agree(
        {
            "config": build.flat(config),
            "data": data.fingerprint,
            "code": code_version(),
        }
    )
    check_shared(Path(workdir))
    return Session(config, Path(workdir), processes, mesh, data, tokenizer, model)


def keep_programs(folder: str, processes: Processes) -> None:
    """Keep compiled programs in `folder`; call it before anything is compiled.

    Process 0 writes and all read, but not on CPUs: there JAX looks for a program under
    another name in each process. The first would load its own and wait for the others
    to compile, and gloo waits for 30 s only; so several CPU processes go without.
    """
    if processes.count > 1 and jax.default_backend() == "cpu":
        logging.warning("run.compilation_cache is not used by several CPU processes")
        return
    jax.config.update("jax_compilation_cache_dir", folder)
    # Also the many small programs: to save a checkpoint takes about a hundred.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def first_params(session: Session) -> tuple[Any, dict[str, Any]]:
    """Parameters before the first step, and what is known of their origin.

    Returns:
        The nested dict, and a JSON record: the file's SHA-256, what was loaded,
        resized, ignored and newly initialised.
    """
    with together("loading the first weights"):
        params, origin = _first_params(session)
    agree({"weights": origin.get("sha256", "")})
    return params, origin


def _first_params(session: Session) -> tuple[Any, dict[str, Any]]:
    init = session.config.init
    params = models.init_params(session.model, session.config.seed)
    if not init.path:
        logging.info("init.path is empty: all parameters are new")
        return params, {"source": "", "newly_initialised": ["everything"]}
    loaded = weights.load_params(
        init.path, session.model, drop_classifier=init.drop_classifier
    )
    return weights.fill(params, loaded), loaded.report.as_dict()


def to_host(params: Any, mesh: Mesh) -> Any:
    """Whole arrays in this process's memory, wherever the shards lie."""
    gather = jax.jit(lambda p: p, out_shardings=replicated(mesh))
    return jax.device_get(gather(params))


def save_model(
    session: Session, name: str, params: Any, metadata: dict[str, str]
) -> None:
    """Write weights and sizes into the run's folder, for everyone without the data."""
    host = to_host(params, session.mesh)
    if session.processes.index == 0:
        # The file is for use, where the precision is the reader's own choice.
        config = dataclasses.replace(session.model, dtype="float32", remat="none")
        weights.save_native(session.workdir / name, host, config, metadata)
