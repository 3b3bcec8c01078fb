# SPDX-License-Identifier: Apache-2.0
"""How good the weights of a run are: the best so far, and the tables at its end."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from data_pipeline.command import say
from fmfa_jax import evaluation, figures, models, weights
from fmfa_jax.machines.mesh import replicated
from fmfa_jax.machines.processes import broadcast
from fmfa_jax.training.session import Session, save_model
from fmfa_jax.training.settings import AUTO

LAST, BEST = "model_last.safetensors", "model_best.safetensors"


def about(session: Session, name: str) -> dict[str, str]:
    """What a weight file of the run says of itself; empty where there is none.

    Read on process 0 and broadcast: on a shared disk the others may see a stale file.
    """
    path, writer = session.workdir / name, session.processes.index == 0
    there = writer and path.is_file()
    return broadcast(dict(weights.read_archive(path).metadata) if there else {})


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
    """

    session: Session
    say: Callable[[str], None] = say
    beat: Callable[[str], None] = lambda what: None

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
            facts = {"step": str(step), "score": str(metrics.r1), "chosen_on": name}
            save_model(self.session, BEST, params, facts)
        return {
            f"{name}/{metric}": value for metric, value in metrics.as_dict().items()
        }

    def report(self) -> None:
        """Measure the run's last and best weights, and say the tables."""
        if not self.session.reported_on:
            self.say(f"\n{self.unmeasured}")
        measured = set()
        for label, name in (("last", LAST), ("best", BEST)):
            facts = about(self.session, name)
            if not facts or not self.session.reported_on:
                continue
            chosen = f", chosen on {facts['chosen_on']}" if "chosen_on" in facts else ""
            title = f"{label} weights (step {facts['step']}{chosen})"
            if facts["step"] in measured:
                self.say(f"\n{title}: the same as above")
                continue
            measured.add(facts["step"])
            self.measure_file(
                self.session.workdir / name, title, step=int(facts["step"])
            )
        self.say(f"All files of the run: {self.session.workdir}")

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
            activation=activation,
            hints=weights.CONFIG_HINTS,
        )
        pictures = session.settings.eval.pictures
        result = self.measure(
            sizes, loaded.params, session.reported_on, step=step, pictures=pictures
        )
        if loaded.report.assumes:
            self.say(f"\nactivation: {loaded.report.activation}")
        self.say(f"\n{title} on {session.reported_on}, percent:")
        self.say(evaluation.table(result, dataset=session.data.name))
        return loaded.report
