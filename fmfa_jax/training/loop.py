# SPDX-License-Identifier: Apache-2.0
"""A run from its first step to its last table."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
from ml_collections import ConfigDict

from data_pipeline.findings import Finding
from data_pipeline.loader import BadImages
from data_pipeline.survey import cut, survey
from fmfa_jax import files
from fmfa_jax.figures import write_curves, write_page
from fmfa_jax.machines.flops import peak_flops
from fmfa_jax.machines.lifecycle import StopSignal, Watchdog
from fmfa_jax.machines.processes import (
    agree,
    broadcast,
    initialize_distributed,
    together,
)
from fmfa_jax.methods.method import Batch, Epoch, Method, State
from fmfa_jax.run.checkpoints import Checkpoints
from fmfa_jax.run.environment import environment
from fmfa_jax.run.folder import RunFolder, reading
from fmfa_jax.run.identity import digest
from fmfa_jax.run.log import RunLog, open_log
from fmfa_jax.run.writers.jsonl import METRICS, recorded
from fmfa_jax.training.computing import in_words
from fmfa_jax.training.failure import check_skipped
from fmfa_jax.training.interval import Interval, model_flops
from fmfa_jax.training.judge import BEST, LAST, Judge, measure
from fmfa_jax.training.optimizer import make_optimizer, make_schedule
from fmfa_jax.training.session import (
    Session,
    device_batches,
    first_params,
    open_session,
    spread,
)
from fmfa_jax.training.step import Report, Step, make_state, make_step


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

    def evaluates(self, step: int) -> bool:
        """Whether an evaluation is due after `step`."""
        return self.due(step, self.evaluate) or step == self.stop


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
        checkpoints: Those of the run.
        run: Digest of the run's identity.
    """

    plan: Plan
    method: Method
    step: Step
    state: State
    start: int
    origin: dict[str, Any]
    interval: Interval
    checkpoints: Checkpoints
    run: str


def prepare(session: Session) -> Training:
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
        max_skipped=settings.train.max_skipped,
    )
    # Only process 0 writes the log; another trace takes seconds.
    writes = session.processes.index == 0
    interval = Interval(model_flops(method, state, mesh) if writes else lambda batch: 0)
    identity = session.identity(origin)
    agree({"identity": identity})
    checkpoints = Checkpoints(
        session.workdir / "checkpoints",
        identity=identity,
        told=session.told(),
        keep=settings.checkpoint.keep,
        most_failed=settings.checkpoint.max_failed,
        mirror=session.mirror,
    )
    restored = checkpoints.restore_latest(state)
    state, start = (state, 0) if restored is None else restored
    return Training(
        plan,
        method,
        step,
        state,
        start,
        origin,
        interval,
        checkpoints,
        digest(identity),
    )


def train(
    config: ConfigDict, workdir: str, *, devices: Sequence[jax.Device] | None = None
) -> bool:
    """Train until the last step of the config; resume from what `workdir` holds.

    Leaves config.json, environment.json, init.json, data.json, metrics.jsonl,
    TensorBoard events, checkpoints/, model_last.safetensors, model_best.safetensors,
    eval/<step>/ and bad_images.tsv in `workdir`.

    Args:
        config: A whole config, as configs/ makes it.
        workdir: Folder of the run, or its URL in an object store.
        devices: Devices to train on; None: all of all processes.

    Returns:
        False if a signal has stopped the run; the same call resumes it.

    Raises:
        ValueError: A bad value, a batch that does not fit the devices, a checkpoint of
            another configuration, another process that trains in `workdir`.
        FloatingPointError: Too many steps in a row were not finite.
        DiskError: `workdir` can no longer be written.
        StoreError: It lies in a store that cannot be read.
    """
    initialize_distributed()
    with RunFolder(workdir) as folder:
        session = open_session(
            config, str(folder.local), devices=devices, apart=folder.apart
        )
        folder.take()
        session = replace(session, mirror=folder.mirror)
        with folder.watched(), folder.kept():
            return run(session, prepare(session))


def run(session: Session, training: Training) -> bool:
    """Train from the first step that is left; see `train`."""
    plan, method, state = training.plan, training.method, training.state
    checkpoints, bad_images = training.checkpoints, BadImages()
    with together("opening the log"):
        log = start_log(session, training)
    checkpoints.tell(log.say)
    watchdog = Watchdog(session.settings.run.watchdog_seconds)
    judge = Judge(session, log.say, watchdog.beat, training.run)
    with (
        checkpoints,
        log,
        watchdog,
        StopSignal() as stop,
        bad_images_kept(session, bad_images),
    ):
        with together("setting foreign weights aside"):
            judge.set_foreign_aside()
        if evaluation_is_missing(session, plan, training.start):
            evaluate_now(judge, log, state, plan, training.start)
        feed = device_batches(session, method, training.start, plan.stop, bad_images)
        for step, batch in enumerate(feed, training.start + 1):
            if (step - 1) % plan.epoch == 0:
                coming = epoch_at(session, method, step, watchdog)
                state = method.before_epoch(state, coming)
            state, report = training.step(state, batch)
            training.interval.add(batch, report)
            watchdog.beat(f"step {step}")
            stops = stop.requested(step)
            saves = plan.due(step, plan.save) or step == plan.stop or stops
            if plan.due(step, plan.log) or saves or step == 1:
                write_step(log, step, training, report)
                check_skipped(
                    session,
                    method,
                    training.step,
                    state,
                    step=step,
                    saved=checkpoints.saved,
                )
            if saves:
                checkpoints.save(step, state)
            if stops and step < plan.stop:
                # An evaluation that is due waits, too: the grace may be short.
                checkpoints.wait()
                log.say(f"{stop.name}: saved step {step}; the same command resumes")
                return False
            if session.chosen_on and plan.evaluates(step):
                evaluate_now(judge, log, state, plan, step)
        checkpoints.wait()
        judge.save(LAST, state["params"], step=plan.stop)
        spread(session, LAST, BEST)
        writes = session.processes.index == 0
        if writes:  # before the evaluation, which may fail
            write_curves(session.workdir / METRICS, session.workdir / "curves.png")
        judge.report()
        if writes:
            write_page([session.workdir])
    return True


def evaluation_is_missing(session: Session, plan: Plan, step: int) -> bool:
    """Whether a run that resumes after `step` ended before its evaluation there.

    All processes must call it.
    """
    if not (step and session.chosen_on and plan.evaluates(step)):
        return False
    name, writes = f"{session.chosen_on}/r1", session.processes.index == 0
    done = writes and recorded(session.workdir, name, step=step)
    return not broadcast(done)


def evaluate_now(
    judge: Judge, log: RunLog, state: State, plan: Plan, step: int
) -> None:
    """Evaluate the weights after `step`, keep them if they are the best, log it."""
    with log.paused():
        figures = judge.keep_best(state["params"], step=step)
    log.scalars(step, step / plan.epoch, figures)


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
        losses=("total", *settings.losses),
        tensorboard=settings.log.tensorboard,
        wandb=settings.log.wandb,
        mlflow=settings.log.mlflow,
        config=settings.flat,
    )
    log.say(opening(session, plan, training.start))
    if session.processes.index == 0:
        findings = oddities(session)
        for finding in findings:
            log.say(str(finding))
        files.write_json(folder / "data.json", [asdict(each) for each in findings])
        files.write_json(folder / "config.json", settings.flat)
        # Which names the resolved `auto` of config.json.
        used = {"computing": in_words(session.model, session.mesh.devices.flat[0])}
        files.write_json(folder / "environment.json", environment() | used)
        files.write_json(folder / "init.json", training.origin)
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
        if session.workdir.is_dir():  # one that has vanished is not made anew
            files.write_table(session.workdir / name, ("path", "reason"), rows)


def oddities(session: Session) -> list[Finding]:
    """What is odd about the data set, as `data_pipeline.check` would say."""
    length = session.model.context_length
    return survey(session.data) + cut(session.data, session.tokenizer, length)


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
        f"{plan.epoch} steps an epoch",
        in_words(session.model, devices[0]),
        f"run folder: {session.address}",
    ]
    if start:
        lines.append(f"resumed after step {start} of {plan.stop}")
    return "\n".join(lines)


def epoch_at(session: Session, method: Method, step: int, watchdog: Watchdog) -> Epoch:
    """The epoch whose first step is `step`, for `Method.before_epoch`."""
    first = step - 1

    def passed() -> Iterator[Batch]:
        """Yield the batches of the epoch to come."""
        # What cannot be read is told once, by the steps themselves.
        last = first + session.epoch
        for batch in device_batches(session, method, first, last, BadImages()):
            watchdog.beat(f"a pass before step {step}")
            yield batch

    return Epoch(first // session.epoch, passed)


def write_step(log: RunLog, step: int, training: Training, report: Report) -> None:
    """One log line. Fetching the scalars waits for the step."""
    method, (flops, records) = training.method, training.interval.take()
    scalars, records = jax.device_get((report.scalars, records))
    values = {name: float(value) for name, value in scalars.items()}
    values |= method.summarize(records)
    log.step(step, step / training.plan.epoch, values, flops=flops)
    if step == 1 and (warning := method.warning(values)):
        log.say(f"warning: {warning}")


def evaluate(
    config: ConfigDict, workdir: str, *, devices: Sequence[jax.Device] | None = None
) -> None:
    """Measure a run, or, where `workdir` holds none, the weights in init.path.

    Raises:
        FileNotFoundError: There is neither.
    """
    initialize_distributed()
    with reading(workdir) as folder:
        session = open_session(
            config, str(folder.local), devices=devices, apart=folder.apart
        )
        folder.bring()
        with folder.kept():
            measure(replace(session, mirror=folder.mirror))
