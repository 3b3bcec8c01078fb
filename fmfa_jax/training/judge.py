# SPDX-License-Identifier: Apache-2.0
"""How good the weights of a run are: the best so far, and the tables at its end."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from data_pipeline.command import say
from data_pipeline.findings import shortened
from fmfa_jax import evaluation, figures, files, models, weights
from fmfa_jax.machines.mesh import replicated
from fmfa_jax.machines.processes import agree, broadcast, together
from fmfa_jax.run.identity import digest
from fmfa_jax.training.session import Session, save_model
from fmfa_jax.training.settings import AUTO

LAST, BEST = "model_last.safetensors", "model_best.safetensors"


def about(session: Session, name: str) -> dict[str, str]:
    """What a weight file of the run says of itself; empty where there is none.

    Read on process 0 and broadcast: on a shared disk the others may see a stale file.
    """
    path, writer = session.workdir / name, session.processes.index == 0
    with together(f"reading {name}"):
        there = writer and path.is_file()
        facts = dict(weights.read_archive(path).metadata) if there else {}
    return broadcast(facts)


def _is_percent(text: str) -> bool:
    try:
        return 0 <= float(text) <= 100
    except ValueError:
        return False


def summary(metrics: evaluation.RetrievalMetrics) -> str:
    """Text-to-image figures in one line."""
    return (
        f"text -> image R1 {metrics.r1:.2f}  R5 {metrics.r5:.2f}  "
        f"R10 {metrics.r10:.2f}  mAP {metrics.mAP:.2f}  mINP {metrics.mINP:.2f}"
    )


@dataclasses.dataclass(frozen=True)
class Judge:
    """Evaluates weights within a session.

    Attributes:
        session: The run.
        say: Told what came out.
        beat: Told before each batch, so that a watchdog sees progress.
        run: Digest of the run's identity, which its weight files carry.
    """

    session: Session
    say: Callable[[str], None] = say
    beat: Callable[[str], None] = lambda what: None
    run: str = ""

    def measure(
        self,
        model: models.ModelConfig,
        params: Any,
        split: str,
        *,
        step: int,
        pictures: int = 0,
    ) -> evaluation.Evaluation:
        """Both directions of retrieval on a split, written to eval/ of the run.

        Args:
            model: Sizes of the model.
            params: Its parameters.
            split: "val" or "test".
            step: Training steps of the weights.
            pictures: Ranking pictures to draw; above 0 the similarities and the map
                of the features are drawn too.
        """
        session, method = self.session, self.session.settings.learns
        data = session.data.evaluation_split(split)
        params = jax.device_put(params, replicated(session.mesh))

        def encoder(features: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
            """Return an encoder that tells the watchdog of each batch."""

            def encode(batch: jax.Array) -> jax.Array:
                self.beat(f"evaluation on {split} after step {step}")
                return features(model, params, batch)

            return encode

        measured = evaluation.evaluate(
            encoder(method.image_features),
            encoder(method.text_features),
            data,
            tokenizer=session.tokenizer,
            image_size=model.image_size,
            context_length=model.context_length,
            batch_size=session.settings.eval.batch_size,
            folder=session.workdir,
            step=step,
            dataset=session.data.name,
            mesh=session.mesh,
            parts=method.feature_parts(model),
        )
        if session.processes.index == 0:
            figures.write_evaluation(
                evaluation.report_folder(session.workdir, step, split),
                data,
                measured.features,
                measured.ranks,
                pictures=pictures,
            )
        return measured.evaluation

    def keep_best(self, params: Any, *, step: int) -> dict[str, float]:
        """Evaluate on the choosing split; keep these weights if none were better.

        Returns:
            The figures for the log, named after the split.
        """
        name = self.session.chosen_on
        metrics = self.measure(self.session.model, params, name, step=step).t2i
        self.say(f"step {step}, {name}: {summary(metrics)}")
        if metrics.r1 > float(about(self.session, BEST).get("score", "-inf")):
            facts = {"score": str(metrics.r1), **self._chosen()}
            self.save(BEST, params, step=step, **facts)
        return {
            f"{name}/{metric}": value for metric, value in metrics.as_dict().items()
        }

    def save(self, name: str, params: Any, *, step: int, **facts: str) -> None:
        """Write weights into the run's folder, with whose they are."""
        known = {"step": str(step), "run": self.run, **facts}
        save_model(self.session, name, params, known)

    def set_foreign_aside(self) -> None:
        """Rename weight files that are not this run's, or of another split, and say so.

        Process 0 does it, before the first step.
        """
        for name in (LAST, BEST) if self.session.processes.index == 0 else ():
            path = self.session.workdir / name
            if reason := self._foreign(path) if os.path.lexists(path) else "":
                kept = files.set_aside(path, path.with_name(f"{name}.aside"))
                self.say(f"note: {name} {reason}: set aside as {kept.name}")

    def _foreign(self, path: Path) -> str:
        """Why a weight file does not belong to this run; empty if it does."""
        try:
            facts = weights.read_archive(path).metadata
        except (weights.WeightsError, OSError) as error:
            return f"cannot be read ({shortened(str(error), 200)})"
        if facts.get("run") != self.run or not facts.get("step", "").isdecimal():
            return "is not of this run, or of an earlier version"
        if path.name == BEST and not self._chosen().items() <= facts.items():
            return "was chosen on another split, or another state of it"
        if path.name == BEST and not _is_percent(facts.get("score", "")):
            return "has no score"
        return ""

    def _chosen(self) -> dict[str, str]:
        """What the best weights are chosen on: the split's name, and its digest."""
        name = self.session.chosen_on
        if not name:
            return {"chosen_on": ""}
        contents = self.session.data.evaluation_split(name).contents
        return {"chosen_on": name, "split": digest(contents)}

    def report(self) -> None:
        """Measure the run's last and best weights, and say the tables."""
        if not self.session.reported_on:
            self.say(f"\n{self.unmeasured}")
        measured, runs = set(), set()
        for label, name in (("last", LAST), ("best", BEST)):
            facts = about(self.session, name)
            if not facts or not self.session.reported_on:
                continue
            if not facts.get("step", "").isdecimal():
                self.say(f"\n{name} is left out: it does not say its step")
                continue
            runs.add(facts.get("run"))
            if len(runs) > 1:
                self.say(f"\nwarning: {LAST} and {BEST} are of two runs")
            chosen = f", chosen on {facts['chosen_on']}" if "chosen_on" in facts else ""
            title = f"{label} weights (step {facts['step']}{chosen})"
            if facts["step"] in measured:
                self.say(f"\n{title}: the same as above")
                continue
            measured.add(facts["step"])
            self.measure_file(
                self.session.workdir / name, title, step=int(facts["step"])
            )
        self.say(f"All files of the run: {self.session.address}")

    @property
    def unmeasured(self) -> str:
        """Why there is no table."""
        if self.session.settings.eval.split == "none":
            return "Nothing was measured, as eval.split=none asks."
        return (
            f"Nothing was measured: {self.session.data.root} has captions neither in "
            "val nor in test."
        )

    def measure_file(
        self,
        path: str | Path,
        title: str,
        *,
        step: int = 0,
        activation: str = AUTO,
    ) -> weights.LoadReport:
        """Say the table of a weight file; only what features need is loaded.

        Returns:
            What was loaded from the file, and its SHA-256.
        """
        session = self.session
        stated = weights.stated_activation(path, activation)
        model = dataclasses.replace(session.model, activation=stated)
        sizes = session.settings.learns.at_test(model)
        loaded = weights.load_params(
            path,
            sizes,
            drop_classifier=True,
            text_positions=session.settings.init.text_positions,
            activation=activation,
            hints=weights.CONFIG_HINTS,
        )
        # Each process has read it, perhaps while it was replaced.
        agree({"weights": loaded.report.sha256})
        # A file of another method may lack a head.
        sizes = models.provided(sizes, loaded.params)
        pictures = session.settings.eval.pictures
        result = self.measure(
            sizes, loaded.params, session.reported_on, step=step, pictures=pictures
        )
        if loaded.report.assumes:
            self.say(f"\nactivation: {loaded.report.activation}")
        self.say(f"\n{title} on {session.reported_on}, percent:")
        self.say(evaluation.table(result, dataset=session.data.name))
        return loaded.report


def measure(session: Session) -> None:
    """Measure what the run folder holds, or else init.path; see `loop.evaluate`."""
    writes = session.processes.index == 0
    judge = Judge(session, say if writes else lambda text: None)
    path, record = session.settings.init.path, session.workdir / "init.json"
    if not session.reported_on:
        raise ValueError(judge.unmeasured)
    if any((session.workdir / name).is_file() for name in (LAST, BEST)):
        judge.report()
    elif path:
        activation = session.settings.init.activation
        named = session.settings.flat["init.path"]
        loaded = judge.measure_file(path, named, activation=activation)
        if writes and not record.exists():  # a run that has begun has its own
            files.write_json(record, loaded.as_dict())
    else:
        raise FileNotFoundError(
            f"nothing to evaluate: {session.address} holds neither {LAST} nor {BEST}, "
            "and config.init.path is empty; name a run with --workdir or a weight file "
            "with --config.init.path"
        )
