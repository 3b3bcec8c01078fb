# SPDX-License-Identifier: Apache-2.0
"""The whole step: does it compile, how fast is it, and what does each choice cost?"""

import functools
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import optax

from benchmarks import common
from benchmarks.accelerator.card import PRODUCT
from benchmarks.accelerator.run import Run
from benchmarks.train_step_case import make_batch
from benchmarks.whole_step import RECIPES, WholeStep, build, report_gb, sized
from fmfa_jax.machines.flops import peak_flops
from fmfa_jax.models.config import REMATS
from fmfa_jax.training.interval import model_flops

FUSED = "__cudnn$fmha"
_COMPILED_AT_ONCE = 8
LOOPED = {"scan_unroll": 1}
_REPEATS = 3


@dataclass(frozen=True)
class Case:
    """A step, FMFA's by default, with what differs from what training would choose.

    Attributes:
        name: Of its row.
        batch: Pairs.
        choices: Fields of `models.Compute`.
        loss: Fields of the method's `LossOptions`.
        without: Losses that are left out.
        weights: Weights of the losses instead of the released ones.
        sizes: Other fields of the ModelConfig.
        method: A method, with all losses of its released code unless FMFA's.
        preset: Of the model; "" for the run's.
        length: That captions are cut to.
    """

    name: str
    batch: int
    choices: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=dict)
    method: str = "fmfa"
    preset: str = ""
    length: int | None = None

    def build(self, run: Run, device: Any = None) -> WholeStep:
        """Return the step, for JAX's first device unless another is described."""
        recipe = RECIPES[self.method]
        losses = dict(self.weights or recipe.losses)
        losses = {name: w for name, w in losses.items() if name not in self.without}
        model = sized(
            self.preset or run.sizes.model,
            layers=run.sizes.layers,
            device=device,
            sizes=self.sizes,
            **self.choices,
        )
        recipe = replace(recipe, losses=losses)
        if self.loss:
            recipe = replace(recipe, loss=replace(recipe.loss, **self.loss))
        return build(model, batch=self.batch, method=self.method, recipe=recipe)


def base(run: Run, name: str = "as trained", **changes: Any) -> Case:
    """Return the step as training chooses it, with a few changes."""
    return Case(name, **{"batch": run.sizes.batch} | changes)


def compiles(run: Run) -> None:
    """Trace and compile what training compiles, cold and from the kept programs."""
    preset, size = run.sizes.large
    plus = {"efa_rule": "plus", "mlm_rule": "plus"}
    for case in (
        base(run),
        base(run, "captions cut to 48, plus", length=48, loss=plus),
        base(
            run,
            f"{preset} at {size[0]} x {size[1]}",
            batch=run.sizes.peer_batches[-1],
            preset=preset,
            sizes={"image_size": size},
        ),
    ):
        run.measure(case.name, functools.partial(_compiled_twice, run, case))


def _compiled_twice(run: Run, case: Case) -> dict[str, Any]:
    whole, seconds = case.build(run), []
    for _ in range(2):
        jax.clear_caches()
        start = time.perf_counter()
        lowered = whole.lower(case.batch, case.length)
        traced = time.perf_counter()
        program = lowered.compile()
        seconds.append(time.perf_counter() - traced)
    model = whole.method.model
    return {
        "batch": case.batch,
        "image tokens": model.image_tokens,
        "dtype": model.dtype,
        "attention": model.attention,
        "cuDNN calls": lowered.as_text().count(FUSED),
        "trace s": traced - start,
        "compile s": seconds[0],
        "kept s": seconds[1],
        "program GB": report_gb(program)["program"],
    }


def grid(run: Run) -> None:
    """Time the whole step at all batch sizes and amounts of recomputation."""
    sizes = [(batch, "elementwise") for batch in run.sizes.batches]
    sizes += [(run.sizes.batch, remat) for remat in REMATS if remat != "elementwise"]
    _time(
        run,
        [
            Case(f"batch {batch}, remat {remat}", batch, {"remat": remat})
            for batch, remat in sizes
        ],
    )


def methods(run: Run) -> None:
    """Time the whole step of each method, as training chooses it."""
    _time(run, [base(run, method, method=method) for method in RECIPES])


def toggles(run: Run) -> None:
    """Time the step with one choice changed."""
    tf32 = {"dtype": "float32", "precision": "default"}
    _time(
        run,
        [
            base(run),
            base(run, "attention xla", choices={"attention": "xla"}),
            base(run, "products float32", choices={"products": "float32"}),
            base(run, "scan_unroll 1", choices=LOOPED),
            base(run, "scan_unroll 4", choices={"scan_unroll": 4}),
            base(run, "float32, precision default", choices=tf32),
            base(run, "float32, precision highest", choices={"dtype": "float32"}),
            # What EFA multiplies in belongs here: `loss={..}`.
            base(run, "efa_rule plus", loss={"efa_rule": "plus"}),
        ],
    )


def removal(run: Run) -> None:
    """Time the step without some of its work."""
    towers = {"itc": 1.0}
    _time(
        run,
        [
            base(run),
            base(run, "without EFA", without=("efa",)),
            base(run, "without masked words", without=("mlm",)),
            base(run, "towers and a contrast alone", weights=towers),
        ],
    )
    run.measure("optimiser alone", lambda: _optimiser(base(run).build(run), run))


def _optimiser(whole: WholeStep, run: Run) -> dict[str, Any]:
    @functools.partial(jax.jit, donate_argnums=0)
    def update(state: Any) -> Any:
        """Apply the optimizer alone."""
        params = state["params"]
        changes, kept = whole.optimizer.update(params, state["opt_state"], params)
        return state | {
            "params": optax.apply_updates(params, changes),
            "opt_state": kept,
        }

    held = {"state": whole.state()}

    def call() -> Any:
        held["state"] = update(held["state"])
        return held["state"]

    return {"ms": 1e3 * _median(call, run.sizes.steps)}


def _median(call: Any, steps: int) -> float:
    for _ in range(2):
        common.seconds(call)
    return statistics.median(common.seconds(call, steps) for _ in range(_REPEATS))


def _time(run: Run, cases: list[Case]) -> None:
    """Compile all cases side by side, then time one after the other.

    The compiler tries kernels on the card, so that nothing is timed before it is done.
    """
    timer = Timer(run)
    with ThreadPoolExecutor(_COMPILED_AT_ONCE) as pool:
        started = [pool.submit(timer.compile, case) for case in cases]
    for case, compiled in zip(cases, started, strict=True):
        run.measure(case.name, lambda case=case, job=compiled: timer.time(case, job))


class Timer:
    """Times steps that share weights, as far as they have the same."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._held: dict[Any, Any] = {}
        self._counts: dict[str, int] = {}
        ceilings = [row for row in run.rows("card") if row["case"] == PRODUCT]
        self._ceiling = ceilings[0].get("value") if ceilings else None

    def compile(self, case: Case) -> tuple[WholeStep, Any, float]:
        """Compile a case on a thread of its own."""
        whole, start = case.build(self._run), time.perf_counter()
        return whole, whole.lower(case.batch).compile(), time.perf_counter() - start

    def time(self, case: Case, compiled: Any) -> dict[str, Any]:
        """Return the row of a case."""
        whole, program, took = compiled.result()
        model, held = whole.method.model, self._held
        # What a state holds: parameters, and a method's own arrays.
        heads = (case.method, model.classes, model.irr_layers)
        # The state is donated: after a failure there is none.
        state = {"state": held.pop(heads, None) or self._fresh(whole)}
        batch = whole.batch(make_batch(vars(model), case.batch))

        def call() -> Any:
            state["state"], measured = program(state["state"], batch)
            return measured

        seconds = _median(call, self._run.sizes.steps)
        held[heads] = state["state"]
        work = self._work(case, whole, batch)
        return self._row(case, model, seconds, work) | {
            "program GB": report_gb(program)["program"],
            "compile s": took,
        }

    def _work(self, case: Case, whole: WholeStep, batch: Any) -> int:
        """Return the model's FLOPs, which how it computes does not change."""
        key = str(replace(case, name="", choices={}))
        if key not in self._counts:
            count = model_flops(whole.method, whole.state_shapes(), whole.mesh)
            self._counts[key] = count(batch)
        return self._counts[key]

    def _fresh(self, whole: WholeStep) -> Any:
        self._held.clear()
        return whole.state()

    def _row(self, case: Case, model: Any, seconds: float, work: int) -> dict[str, Any]:
        peak = peak_flops(jax.devices()[0])
        rate = work / seconds / 1e12
        return {
            "batch": case.batch,
            "dtype": model.dtype,
            "attention": model.attention,
            "remat": model.remat,
            "ms": 1e3 * seconds,
            "pairs/s": case.batch / seconds,
            "model TFLOP": work / 1e12,
            "MFU %": peak and 1e14 * rate / peak,
            "of the product's rate %": self._ceiling and 100 * rate / self._ceiling,
        }
