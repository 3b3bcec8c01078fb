# SPDX-License-Identifier: Apache-2.0
"""A run from its first step to its last table."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import jax
from ml_collections import ConfigDict

from data_pipeline.loader import BadImages, train_batches
from fmfa_jax.figures import write_curves
from fmfa_jax.machines.flops import peak_flops
from fmfa_jax.machines.lifecycle import StopSignal, Watchdog
from fmfa_jax.machines.mesh import to_devices
from fmfa_jax.methods import method as methods
from fmfa_jax.run.checkpoints import Checkpoints
from fmfa_jax.run.environment import environment
from fmfa_jax.run.log import METRICS, RunLog, write_json, write_table
from fmfa_jax.training import settings as build
from fmfa_jax.training.interval import Interval, model_flops
from fmfa_jax.training.judge import BEST, LAST, Judge
from fmfa_jax.training.session import (
    Session,
    first_params,
    open_session,
    save_model,
)
from fmfa_jax.training.step import State, make_state, make_step


@dataclass(frozen=True)
class Plan:
    """Which steps a run takes, and after which of them something is due.

    Attributes:
        epoch: steps in an epoch.
        stop: the last step of this call.
        log: steps between two log lines.
        evaluate: steps between two evaluations; 0: only at the end.
        save: steps between two checkpoints.
    """

    epoch: int
    stop: int
    log: int
    evaluate: int
    save: int

    @staticmethod
    def of(config: ConfigDict, epoch: int) -> "Plan":
        """The plan that a config asks for, given the length of an epoch."""
        stop = config.train.epochs * epoch
        save = config.checkpoint.every_steps
        return Plan(
            epoch=epoch,
            stop=min(stop, config.train.stop_step or stop),
            log=config.log.every_steps,
            evaluate=config.eval.every_epochs * epoch,
            save=save or config.checkpoint.every_epochs * epoch,
        )

    def due(self, step: int, every: int) -> bool:
        """Whether something that happens `every` so many steps is due after `step`."""
        return bool(every) and (step % every == 0)


@dataclass(frozen=True)
class Training:
    """All that the first step needs.

    Attributes:
        plan: what is due when.
        method: what is learned.
        step: the compiled step.
        state: after `start` steps.
        start: steps done in earlier calls.
        origin: of the first parameters, for init.json.
        interval: collects between two log lines.
    """

    plan: Plan
    method: methods.Method
    step: Callable[..., Any]
    state: State
    start: int
    origin: dict[str, Any]
    interval: Interval


def prepare(session: Session, checkpoints: Checkpoints) -> Training:
    """Build method, state and step; go back to the newest checkpoint, if any."""
    config = session.config
    plan = Plan.of(config, build.epoch_length(config, session.data.train))
    optimizer, schedule = build.optimizer(config, plan.epoch)
    method = methods.make_method(session, steps_per_epoch=plan.epoch)
    params, origin = first_params(session)
    state = make_state(params, optimizer, session.mesh, method.memory())
    step = make_step(
        method.loss,
        optimizer,
        state,
        mesh=session.mesh,
        seed=config.seed,
        schedule=schedule,
        chunks=config.train.chunks,
    )
    # What is computed twice to save memory is no progress.
    lean = replace(session, model=replace(session.model, remat="none"))
    progress = methods.make_method(lean, steps_per_epoch=plan.epoch).loss
    count = model_flops(progress, state, session.mesh)
    # Only process 0 writes the log; a trace more takes seconds.
    interval = Interval(count if session.processes.index == 0 else lambda batch: 0)
    restored = checkpoints.restore_latest(state)
    state, start = (state, 0) if restored is None else restored
    return Training(plan, method, step, state, start, origin, interval)


def train(config: ConfigDict, workdir: str) -> None:
    """Train until the last step of the config; resume from what `workdir` holds.

    Leaves config.json, environment.json, init.json, metrics.jsonl, TensorBoard events,
    checkpoints/, model_last.safetensors, model_best.safetensors, eval/<step>/ and
    bad_images.tsv in `workdir`.

    Raises:
        ValueError: a bad value, a batch that does not fit the devices, a checkpoint of
            another configuration.
        FloatingPointError: the loss is no longer finite.
    """
    session = open_session(config, workdir)
    checkpoints = Checkpoints(
        session.workdir / "checkpoints",
        identity=build.identity(config) | session.data_identity(),
        keep=config.checkpoint.keep,
    )
    training = prepare(session, checkpoints)
    plan, method, interval = training.plan, training.method, training.interval
    state, start = training.state, training.start
    bad_images = BadImages()
    log = open_log(session, training)
    watchdog = Watchdog(config.run.watchdog_seconds)
    judge = Judge(session, log.say, watchdog.beat)
    with (
        checkpoints,
        log,
        watchdog,
        StopSignal() as stop,
        bad_images_kept(session, bad_images),
    ):
        for step, rows in enumerate(
            batches(session, plan, start, bad_images), start=start + 1
        ):
            batch = to_devices(method.pick(rows), session.mesh)
            state, measured = training.step(state, batch)
            interval.add(batch, measured)
            watchdog.beat(f"step {step}")
            stops = stop.requested(step)
            saves = plan.due(step, plan.save) or step == plan.stop or stops
            if plan.due(step, plan.log) or saves or step == 1:
                # Also before a checkpoint: what is not finite must not be saved.
                flops, links = interval.take()
                values = method.scalars(measured, links)
                write_scalars(log, step, plan, values, flops)
                if step == 1 and (warning := method.warning(values)):
                    log.say(warning)
            if plan.due(step, plan.evaluate) or step == plan.stop:
                with log.untimed():
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


def open_log(session: Session, training: Training) -> RunLog:
    """The run's log, with what is known before the first step written down."""
    config, plan = session.config, training.plan
    peak = peak_flops(jax.devices()[0])
    log = RunLog(
        session.workdir,
        start_step=training.start,
        stop_step=plan.stop,
        pairs_per_step=config.train.batch_size,
        peak_flops=peak and peak * jax.device_count(),
        tensorboard="events" if config.log.tensorboard else "none",
    )
    log.write_json("config.json", build.flat(config))
    log.write_json("environment.json", environment())
    log.write_json("init.json", training.origin)
    log.say(opening(session, plan, training.start))
    return log


@contextmanager
def bad_images_kept(session: Session, bad_images: BadImages) -> Iterator[None]:
    """Write this process's unreadable pictures down, however the run ends."""
    index = session.processes.index
    name = f"bad_images-{index}.tsv" if index else "bad_images.tsv"
    try:
        yield
    finally:
        rows = [[bad.path, bad.reason] for bad in bad_images.entries]
        write_table(session.workdir / name, ("path", "reason"), rows)


def opening(session: Session, plan: Plan, start: int) -> str:
    """What the run is, in a few lines."""
    config, split = session.config, session.data.train
    lines = [
        f"{config.name}: {config.method} on {session.data.name}, "
        f"{len(split.identities)} identities, {len(split.images)} images, "
        f"{len(split.pairs)} pairs",
        f"{jax.device_count()} x {jax.devices()[0].device_kind}, "
        f"{session.processes.count} process(es), batch {config.train.batch_size}, "
        f"{plan.epoch} steps an epoch, {session.model.dtype} towers",
        f"run folder: {session.workdir}",
    ]
    if start:
        lines.append(f"resumed after step {start} of {plan.stop}")
    return "\n".join(lines)


def batches(
    session: Session, plan: Plan, start: int, bad_images: BadImages
) -> Iterator[dict]:
    """This process's rows of the batches after step `start`."""
    config = session.config
    return train_batches(
        session.data.train,
        tokenizer=session.tokenizer,
        image_size=session.model.image_size,
        context_length=session.model.context_length,
        batch_size=config.train.batch_size,
        seed=config.seed,
        start_step=start,
        stop_step=plan.stop,
        process_index=session.processes.index,
        process_count=session.processes.count,
        sampler=config.data.sampler,
        per_identity=config.data.per_identity,
        cache=config.data.cache,
        cache_dir=config.data.cache_dir or None,
        caption_buckets=tuple(config.data.caption_buckets),
        bad_images=bad_images,
    )


def write_scalars(
    log: RunLog, step: int, plan: Plan, values: dict[str, float], flops: int
) -> None:
    """One log line; ends the run when the loss is no longer finite."""
    speeds = log.progress(step, values, flops=flops)
    log.scalars(step, step / plan.epoch, values | speeds)
    if not math.isfinite(values["total"]):
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        raise FloatingPointError(
            f"not finite after step {step}: {', '.join(broken)}. The last "
            "checkpoint is older; lower optimizer.lr or set optimizer.clip_norm, which "
            "makes it another run: start that one from model_best.safetensors"
        )


def evaluate(config: ConfigDict, workdir: str) -> None:
    """Measure a run, or, where `workdir` holds none, the weights in init.path.

    Raises:
        FileNotFoundError: there is neither.
    """
    session = open_session(config, workdir)
    judge = Judge(session)
    if any((session.workdir / name).is_file() for name in (LAST, BEST)):
        judge.report()
    elif config.init.path:
        loaded = judge.measure_file(config.init.path, config.init.path)
        if session.processes.index == 0:
            write_json(session.workdir / "init.json", loaded.as_dict())
    else:
        raise FileNotFoundError(
            f"nothing to evaluate: {session.workdir} holds neither {LAST} nor {BEST}, "
            "and config.init.path is empty; name a run with --workdir or a weight file "
            "with --config.init.path"
        )
