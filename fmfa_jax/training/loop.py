# SPDX-License-Identifier: Apache-2.0
"""A run from its first step to its last table."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
from ml_collections import ConfigDict

from data_pipeline.loader import BadImages
from fmfa_jax import files
from fmfa_jax.figures import write_curves
from fmfa_jax.machines.flops import peak_flops
from fmfa_jax.machines.lifecycle import StopSignal, Watchdog
from fmfa_jax.methods.method import Batch, Epoch, Measured, Method, State
from fmfa_jax.run.checkpoints import Checkpoints
from fmfa_jax.run.environment import environment
from fmfa_jax.run.log import RunLog, open_log
from fmfa_jax.run.writers.jsonl import METRICS
from fmfa_jax.training.interval import Interval, model_flops
from fmfa_jax.training.judge import BEST, LAST, Judge
from fmfa_jax.training.optimizer import make_optimizer, make_schedule
from fmfa_jax.training.session import (
    Session,
    batches,
    first_params,
    on_devices,
    open_session,
    save_model,
)
from fmfa_jax.training.step import make_state, make_step


@dataclass(frozen=True)
class Plan:
    """The steps of a run, and after which of them something is due.

    Attributes:
        epoch: Steps in an epoch.
        stop: The last step of this call.
        log: Steps between two log lines.
        evaluate: Steps between two evaluations; 0: only at the end.
        save: Steps between two checkpoints; 0: only at the end.
    """

    epoch: int
    stop: int
    log: int
    evaluate: int
    save: int

    @staticmethod
    def of(session: Session) -> "Plan":
        """The plan that the settings ask for."""
        settings, epoch = session.settings, session.epoch
        stop, saving = settings.train.epochs * epoch, settings.checkpoint
        return Plan(
            epoch=epoch,
            stop=min(stop, settings.train.stop_step or stop),
            log=settings.log.every_steps,
            evaluate=settings.eval.every_epochs * epoch,
            save=saving.every_steps or saving.every_epochs * epoch,
        )

    def due(self, step: int, every: int) -> bool:
        """Whether something that happens every so many steps is due after `step`."""
        return bool(every) and (step % every == 0)


@dataclass(frozen=True)
class Training:
    """Everything that the first step needs.

    Attributes:
        plan: What is due when.
        method: What is learned.
        step: The compiled step.
        state: The state after `start` steps.
        start: Steps done in earlier calls.
        origin: Where the first parameters come from, for init.json.
        interval: Collects what adds up between two log lines.
    """

    plan: Plan
    method: Method
    step: Callable[[State, Batch], tuple[State, Measured]]
    state: State
    start: int
    origin: dict[str, Any]
    interval: Interval


def prepare(session: Session, checkpoints: Checkpoints) -> Training:
    """Build method, state and step; go back to the newest checkpoint, if any."""
    settings, mesh = session.settings, session.mesh
    plan = Plan.of(session)
    method = settings.learns.for_task(settings.recipe, session.task())
    schedule = make_schedule(
        settings.optimizer.lr,
        settings.schedule,
        epochs=settings.train.epochs,
        steps_per_epoch=plan.epoch,
    )
    optimizer = make_optimizer(
        schedule, settings.optimizer, own_group=method.parameter_group
    )
    params, origin = first_params(session)
    state = make_state(params, optimizer, mesh, method)
    step = make_step(
        method,
        optimizer,
        state,
        mesh=mesh,
        seed=settings.seed,
        schedule=schedule,
        chunks=settings.train.chunks,
    )
    # Only process 0 writes the log; another trace takes seconds.
    writes = session.processes.index == 0
    interval = Interval(model_flops(method, state, mesh) if writes else lambda batch: 0)
    restored = checkpoints.restore_latest(state)
    state, start = (state, 0) if restored is None else restored
    return Training(plan, method, step, state, start, origin, interval)


def train(
    config: ConfigDict, workdir: str, *, devices: Sequence[jax.Device] | None = None
) -> None:
    """Train until the last step of the config; resume from what `workdir` holds.

    Leaves config.json, environment.json, init.json, metrics.jsonl, TensorBoard events,
    checkpoints/, model_last.safetensors, model_best.safetensors, eval/<step>/ and
    bad_images.tsv in `workdir`.

    Args:
        config: A whole config, as configs/ makes it.
        workdir: Folder of the run.
        devices: Devices to train on; None: all of all processes.

    Raises:
        ValueError: A bad value, a batch that does not fit the devices, a checkpoint of
            another configuration.
        FloatingPointError: The loss is no longer finite.
    """
    session = open_session(config, workdir, devices=devices)
    checkpoints = Checkpoints(
        session.workdir / "checkpoints",
        identity=session.identity(),
        keep=session.settings.checkpoint.keep,
    )
    training = prepare(session, checkpoints)
    plan, method, state = training.plan, training.method, training.state
    bad_images = BadImages()
    log = start_log(session, training)
    watchdog = Watchdog(session.settings.run.watchdog_seconds)
    judge = Judge(session, log.say, watchdog.beat)
    with (
        checkpoints,
        log,
        watchdog,
        StopSignal() as stop,
        bad_images_kept(session, bad_images),
    ):
        for step, rows in enumerate(
            batches(session, training.start, plan.stop, bad_images), training.start + 1
        ):
            if (step - 1) % plan.epoch == 0:
                state = method.before_epoch(state, epoch_at(session, method, step))
            batch = on_devices(session, method, rows)
            state, measured = training.step(state, batch)
            training.interval.add(batch, measured)
            watchdog.beat(f"step {step}")
            stops = stop.requested(step)
            saves = plan.due(step, plan.save) or step == plan.stop or stops
            if plan.due(step, plan.log) or saves or step == 1:
                # Also before a checkpoint: what is not finite must not be saved.
                write_step(log, step, training, measured)
            if plan.due(step, plan.evaluate) or step == plan.stop:
                with log.paused():
                    figures = judge.keep_best(state["params"], step=step)
                log.scalars(step, step / plan.epoch, figures)
            if saves:
                checkpoints.save(step, state)
            if stops and step < plan.stop:
                checkpoints.wait()
                log.say(f"{stop.name}: saved step {step}; the same command resumes")
                return
        checkpoints.wait()
        save_model(session, LAST, state["params"], {"step": str(plan.stop)})
        if session.processes.index == 0:
            write_curves(session.workdir / METRICS, session.workdir / "curves.png")
        judge.report()


def start_log(session: Session, training: Training) -> RunLog:
    """The run's log, with what is known before the first step written down."""
    settings, folder, plan = session.settings, session.workdir, training.plan
    peak = peak_flops(jax.devices()[0])
    log = open_log(
        folder,
        start_step=training.start,
        stop_step=plan.stop,
        pairs_per_step=settings.train.batch_size,
        peak_flops=peak and peak * session.mesh.size,
        tensorboard=settings.log.tensorboard,
    )
    if session.processes.index == 0:
        files.write_json(folder / "config.json", settings.flat)
        files.write_json(folder / "environment.json", environment())
        files.write_json(folder / "init.json", training.origin)
    log.say(opening(session, plan, training.start))
    return log


@contextmanager
def bad_images_kept(session: Session, bad_images: BadImages) -> Iterator[None]:
    """List this process's unreadable pictures in a file, however the run ends."""
    index = session.processes.index
    name = f"bad_images-{index}.tsv" if index else "bad_images.tsv"
    try:
        yield
    finally:
        rows = [[bad.path, bad.reason] for bad in bad_images.entries]
        files.write_table(session.workdir / name, ("path", "reason"), rows)


def opening(session: Session, plan: Plan, start: int) -> str:
    """What the run is, in a few lines."""
    settings, split = session.settings, session.data.train
    devices = session.mesh.devices.flat
    lines = [
        f"{settings.name}: {settings.method} on {session.data.name}, "
        f"{len(split.identities)} identities, {len(split.images)} images, "
        f"{len(split.pairs)} pairs",
        f"{session.mesh.size} x {devices[0].device_kind}, "
        f"{session.processes.count} process(es), batch {settings.train.batch_size}, "
        f"{plan.epoch} steps an epoch, {session.model.dtype} towers",
        f"run folder: {session.workdir}",
    ]
    if start:
        lines.append(f"resumed after step {start} of {plan.stop}")
    return "\n".join(lines)


def epoch_at(session: Session, method: Method, step: int) -> Epoch:
    """The epoch whose first step is `step`, for `Method.before_epoch`."""
    first = step - 1

    def passed() -> Iterator[Batch]:
        # What cannot be read is told once, by the steps themselves.
        rows = batches(session, first, first + session.epoch, BadImages())
        return (on_devices(session, method, each) for each in rows)

    return Epoch(first // session.epoch, passed)


def write_step(log: RunLog, step: int, training: Training, measured: Measured) -> None:
    """One log line; ends the run when the loss is no longer finite.

    Fetching the scalars waits for the step.
    """
    method, (flops, records) = training.method, training.interval.take()
    scalars, records = jax.device_get((measured.scalars, records))
    values = {name: float(value) for name, value in scalars.items()}
    values |= method.summarize(records)
    log.step(step, step / training.plan.epoch, values, flops=flops)
    check_finite(step, values)
    if step == 1 and (warning := method.warning(values)):
        log.say(warning)


def check_finite(step: int, values: Mapping[str, float]) -> None:
    """Raise FloatingPointError if the total is not finite, naming what is not."""
    if math.isfinite(values["total"]):
        return
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    raise FloatingPointError(
        f"not finite after step {step}: {', '.join(broken)}. The last checkpoint is "
        "older; lower optimizer.lr or set optimizer.clip_norm, which makes it another "
        "run: start that one from model_best.safetensors"
    )


def evaluate(
    config: ConfigDict, workdir: str, *, devices: Sequence[jax.Device] | None = None
) -> None:
    """Measure a run, or, where `workdir` holds none, the weights in init.path.

    Raises:
        FileNotFoundError: There is neither.
    """
    session = open_session(config, workdir, devices=devices)
    judge, path = Judge(session), session.settings.init.path
    if any((session.workdir / name).is_file() for name in (LAST, BEST)):
        judge.report()
    elif path:
        activation = session.settings.init.activation
        loaded = judge.measure_file(path, path, activation=activation)
        if session.processes.index == 0:
            files.write_json(session.workdir / "init.json", loaded.as_dict())
    else:
        raise FileNotFoundError(
            f"nothing to evaluate: {session.workdir} holds neither {LAST} nor {BEST}, "
            "and config.init.path is empty; name a run with --workdir or a weight file "
            "with --config.init.path"
        )
