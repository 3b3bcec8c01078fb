# SPDX-License-Identifier: Apache-2.0
"""What training and evaluation share: devices, data, batches, first parameters."""

import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipeline.copies import near
from data_pipeline.datasets import open_dataset
from data_pipeline.examine import check_evaluation
from data_pipeline.hints import printable
from data_pipeline.loader import BadImages, Material, train_batches
from data_pipeline.noise import with_noise
from data_pipeline.order import steps_per_epoch
from data_pipeline.records import PersonDataset, Split
from data_pipeline.tokenizer import WordTokenizer, open_tokenizer
from fmfa_jax import models, weights
from fmfa_jax.machines.mesh import (
    check_batch_size,
    make_mesh,
    replicated,
    to_devices,
)
from fmfa_jax.machines.processes import (
    Processes,
    agree,
    initialize_distributed,
    together,
)
from fmfa_jax.machines.trees import not_finite, some
from fmfa_jax.methods import Method, Task
from fmfa_jax.methods.method import Batch, HostBatch
from fmfa_jax.run.environment import code_version
from fmfa_jax.run.mirror import PROGRAMS, Mirror
from fmfa_jax.training import settings as door
from fmfa_jax.training.settings import AUTO, Settings

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Session:
    """A config, opened: everything but the train state.

    Attributes:
        settings: What the run was told.
        workdir: Folder of the run.
        processes: This process among all.
        mesh: All devices.
        data: The data set.
        tokenizer: Tokenizer for the captions.
        model: Sizes of the model that is trained.
        mirror: Keeps what `workdir` holds in an object store, if the run lies there.
    """

    settings: Settings
    workdir: Path
    processes: Processes
    mesh: Mesh
    data: PersonDataset
    tokenizer: WordTokenizer
    model: models.ModelConfig
    mirror: Mirror | None = None

    @property
    def address(self) -> str:
        """Where the run lies, safe to print: its folder, or its URL."""
        return printable(self.mirror.url if self.mirror else str(self.workdir))

    @property
    def epoch(self) -> int:
        """Steps in an epoch."""
        pairs, batch = len(self.data.train.pairs), self.settings.train.batch_size
        return steps_per_epoch(size=pairs, batch_size=batch)

    @cached_property
    def material(self) -> Material:
        """What every pass over the training pairs draws from; opened at its first."""
        data = self.settings.data
        return Material.of(
            self.data.train,
            tokenizer=self.tokenizer,
            image_size=self.model.image_size,
            context_length=self.model.context_length,
            cache=data.cache,
            cache_dir=data.cache_dir or None,
            caption_buckets=tuple(data.caption_buckets),
        )

    @property
    def chosen_on(self) -> str:
        """Split that the best weights are chosen on: val where there is one.

        Empty if there is none, or eval.split is "none".
        """
        if self.settings.eval.split != "auto":
            return self.settings.eval.split.replace("none", "")
        return next(iter(self.data.measurable), "")

    @property
    def reported_on(self) -> str:
        """Split of the final tables: test where there is one; empty for none."""
        has_test = "test" in self.data.measurable and self.settings.eval.split != "none"
        return "test" if has_test else self.chosen_on

    def identity(self, origin: dict[str, Any]) -> dict[str, Any]:
        """What this run computes; a checkpoint of another one is refused.

        Contents count, never paths: a run may be moved. See `run.identity`.

        Args:
            origin: Of the first weights, as `first_params` gives it.
        """
        return self.settings.identity() | {
            "model.activation": self.model.activation,
            # Resolved: "auto" is another dtype on another device.
            "model.dtype": self.model.dtype,
            # The weak method's memory has one row for each pair.
            "data.pairs": len(self.data.train.pairs),
            "first weights": origin.get("sha256", "none"),
            "tokenizer entries": self.tokenizer.fingerprint(),
            **_contents(self.data.train),
        }

    def told(self) -> dict[str, str]:
        """What is measured, which may change while a run goes on, but is said."""
        parts = [_contents(each) for each in self.data.splits[1:]]
        return {name: digest for part in parts for name, digest in part.items()}

    def task(self) -> Task:
        """What the method may know of this run."""
        return Task(
            model=self.model,
            mesh=self.mesh,
            split=self.data.train,
            dataset=self.data.name,
            batch_size=self.settings.train.batch_size,
            steps_per_epoch=self.epoch,
            seed=self.settings.seed,
        )


def _contents(split: Split) -> dict[str, str]:
    return {f"{split.name} {name}": each for name, each in split.contents.items()}


def open_session(
    config: ConfigDict,
    workdir: str,
    *,
    devices: Sequence[jax.Device] | None = None,
    apart: bool = False,
) -> Session:
    """Join the other processes, open the data, settle all sizes.

    Args:
        config: A whole config, as configs/ makes it.
        workdir: Folder of the run.
        devices: Devices to use; None: all of all processes.
        apart: Whether each of several processes has another `workdir`.

    Raises:
        ValueError: A value that its key does not take, a batch that does not divide
            over the devices, a split or pictures of it that an evaluation would miss,
            or processes that disagree.
        FileNotFoundError: The data set is not there; says what was looked for.
    """
    processes = initialize_distributed()
    with together("opening the run"):
        settings = with_copies(door.read(config))
        programs = None if apart else Path(workdir, PROGRAMS)
        keep_programs(settings.run.compilation_cache, programs, processes)
        mesh = make_mesh(fsdp=settings.mesh.fsdp, devices=devices)
        train = settings.train
        check_batch_size(train.batch_size, mesh, chunks=train.chunks)
        check_batch_size(settings.eval.batch_size, mesh)
        told = settings.data
        data = open_dataset(told.name, told.root, people=told.people, **told.options)
        data = with_noise(data, told.noise, seed=told.noise_seed)
        tokenizer = open_tokenizer(told.tokenizer)
        model = settings.learns.sized(
            settings.recipe,
            settings.model.sized(
                mesh.devices.flat[0],
                vocab_size=tokenizer.vocab_size,
                classes=len(data.train.identities),
                activation=first_activation(settings.init),
                sharded=settings.mesh.fsdp > 1,
            ),
        )
        session = Session(
            settings, Path(workdir), processes, mesh, data, tokenizer, model
        )
        # Now: a split or a picture that is missing would end the run much later.
        check_evaluation(
            data,
            {session.chosen_on, session.reported_on} - {""},
            process_index=processes.index,
            process_count=processes.count,
        )
    agree(
        {
            "config": settings.flat,
            "data": data.fingerprint,
            "code": code_version(),
        }
    )
    return session


def with_copies(settings: Settings) -> Settings:
    """The same settings, with the first weights on this machine.

    Data and tokenizer are copied where they are opened. config.json keeps all URLs.
    """
    path = settings.init.path
    if weights.is_hub(path):
        path = str(weights.located(path))
    else:
        path = near(path, what="config.init.path")
    return replace(settings, init=replace(settings.init, path=path))


def keep_programs(folder: str, own: Path | None, processes: Processes) -> None:
    """Keep compiled programs in `folder`, from the first one on.

    Process 0 writes and all read, except on CPUs: there JAX looks for a program under
    another name in each process. The first would load its own and wait for the others
    to compile, and gloo waits for 30 s only, so several CPU processes go without.

    Args:
        folder: "auto": where JAX_COMPILATION_CACHE_DIR says, or in `own`; "": nowhere.
        own: A subfolder of the run's; None where processes do not share it, since one
            that loads a program while others compile it would keep them waiting.
        processes: This process among all.
    """
    if not (named := folder != AUTO):
        folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(own or "")
    if not folder:
        return
    if processes.count > 1 and jax.default_backend() == "cpu":
        if named:
            _log.warning("run.compilation_cache: several CPU processes go without")
        return
    if named:
        Path(folder).mkdir(parents=True, exist_ok=True)  # or JAX would do without
    jax.config.update("jax_compilation_cache_dir", folder)
    # Also the many small programs: saving a checkpoint takes about a hundred.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def batches(
    session: Session, start: int, stop: int, bad_images: BadImages
) -> Iterator[dict]:
    """This process's rows of the batches of the steps `start` + 1 to `stop`."""
    settings, data = session.settings, session.settings.data
    return train_batches(
        session.material,
        batch_size=settings.train.batch_size,
        seed=settings.seed,
        start_step=start,
        stop_step=stop,
        process_index=session.processes.index,
        process_count=session.processes.count,
        sampler=data.sampler,
        per_identity=data.per_identity,
        bad_images=bad_images,
    )


def device_batches(
    session: Session, method: Method, start: int, stop: int, bad_images: BadImages
) -> Iterator[Batch]:
    """What the steps `start` + 1 to `stop` see of their batches, on the devices.

    The next batch is on its way before a batch is returned: it is there before the step
    ends, even where the caller waits for the step to write a log line.
    """
    ahead: deque[Batch] = deque()
    try:
        for rows in batches(session, start, stop, bad_images):
            ahead.append(on_devices(session, method, rows))
            if len(ahead) > 1:
                yield ahead.popleft()
    except Exception:
        yield from ahead  # an error waits until its batch is asked for
        raise
    yield from ahead


def on_devices(session: Session, method: Method, rows: HostBatch) -> Batch:
    """The part of a batch that the step may see, checked and spread over the mesh."""
    method.check_batch(rows)
    seen = {name: rows[name] for name in method.batch_keys}
    return to_devices(seen, session.mesh)


def first_activation(init: door.Init) -> str:
    """The activation of the first weights. Of a missing file, loading it tells."""
    if not init.path or not Path(init.path).exists():
        return "quick_gelu" if init.activation == AUTO else init.activation
    return weights.stated_activation(init.path, init.activation)


def first_params(session: Session) -> tuple[Any, dict[str, Any]]:
    """Parameters before the first step, and where they come from.

    Returns:
        The nested dict, and a JSON record: the file's SHA-256, what was loaded,
        resized, ignored and newly initialised.
    """
    with together("loading the first weights"):
        return _first_params(session)


def _first_params(session: Session) -> tuple[Any, dict[str, Any]]:
    init = session.settings.init
    if not init.path:
        _log.info("init.path is empty: all parameters are new")
        params = models.init_params(session.model, session.settings.seed)
        return params, {"source": "", "newly_initialised": ["everything"]}
    # First: programs that are compiled would be kept in the run's folder.
    loaded = weights.load_params(
        init.path,
        session.model,
        drop_classifier=init.drop_classifier,
        text_positions=init.text_positions,
        activation=init.activation,
        hints=weights.CONFIG_HINTS,
    )
    if loaded.report.assumes:
        _log.warning("init.path: the activation is %s", loaded.report.activation)
    params = models.init_params(session.model, session.settings.seed)
    return weights.fill(params, loaded), loaded.report.as_dict()


def spread(session: Session, *names: str) -> None:
    """Let all processes have files that process 0 has written into the run's folder."""
    if session.mirror is None or session.processes.count == 1:
        return
    first = session.processes.index == 0
    with together("putting files of the run"):
        if first:
            session.mirror.push()
    with together("fetching files of the run"):
        for name in () if first else names:
            session.mirror.fetch(name)


def save_model(
    session: Session, name: str, params: Any, metadata: dict[str, str]
) -> None:
    """Write weights and sizes into the run's folder, for use without the data.

    Raises:
        FloatingPointError: They hold a NaN or an infinity.
    """
    if broken := not_finite(params):
        raise FloatingPointError(
            f"{name} is not written: wanted finite weights, got NaN or infinity in "
            f"{some(broken)}"
        )
    gather = jax.jit(lambda p: p, out_shardings=replicated(session.mesh))
    host = jax.device_get(gather(params))
    if session.processes.index == 0:
        # Stored as float32; whoever loads it chooses the compute dtype.
        path = session.workdir / name
        weights.save_native(path, host, session.model.portable, metadata)
