# SPDX-License-Identifier: Apache-2.0
"""What FMFA is compared with, irra and clip; and captions that moved."""

import jax
import numpy as np
import pytest

from configs import demo
from fmfa_jax import models
from fmfa_jax.machines.mesh import make_mesh, to_devices
from fmfa_jax.methods.fmfa import TERMS, FMFAMethod
from fmfa_jax.training import loop, settings
from fmfa_jax.training.optimizer import make_optimizer
from fmfa_jax.training.session import open_session
from fmfa_jax.training.step import make_state, make_step
from tests.tiny_model import tiny_model
from tests.tiny_run import change_data, tiny_config, without_ids

BATCH, PEOPLE, STEPS = 4, 3, 4
MODEL = tiny_model(classes=PEOPLE, irr_layers=1)


def batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, MODEL.vocab_size - 3, (BATCH, MODEL.context_length))
    tokens[:, 0], tokens[:, -1] = MODEL.vocab_size - 2, MODEL.vocab_size - 1
    image = rng.integers(0, 256, (BATCH, *MODEL.image_size, 3), dtype=np.uint8)
    person = np.arange(BATCH) % PEOPLE
    return {
        "image": image,
        "tokens": tokens.astype(np.int32),
        "person": person.astype(np.int32),
    }


@pytest.mark.parametrize(
    ("preset", "losses"), [("irra", {"sdm", "id", "mlm"}), ("clip", {"itc"})]
)
def test_a_baseline_learns_its_losses_and_no_others(preset, losses):
    told = settings.read(demo.get_config(preset))
    mesh = make_mesh(devices=jax.devices()[:1])
    model = FMFAMethod.sized(told.recipe, MODEL)
    assert (model.classes > 0, model.irr_layers > 0) == (preset == "irra",) * 2
    method = FMFAMethod(model, told.recipe, mesh=mesh)

    def rate(step):
        return told.optimizer.lr

    optimizer = make_optimizer(rate, told.optimizer)
    state = make_state(models.init_params(model, 0), optimizer, mesh, method)
    step = make_step(method, optimizer, state, mesh=mesh, seed=0, schedule=rate)
    rows, totals = to_devices(batch(), mesh), []
    for _ in range(STEPS):
        state, report = step(state, rows)
        scalars = jax.device_get(report.scalars)
        totals.append(scalars["total"])
        assert scalars["total"] == pytest.approx(sum(scalars[x] for x in losses))
        assert scalars["skipped"] == 0
        assert scalars.keys() & set(TERMS) == losses
    assert totals[-1] < totals[0]


def opened(folder, preset, **changes):
    config = tiny_config(folder, preset, **changes)
    return open_session(config, str(folder / "run"), devices=jax.devices()[:1])


def test_captions_move_for_any_method_and_the_run_says_so(folder):
    clean, noisy = opened(folder, "weak"), opened(folder, "weak", data__noise=0.5)
    captions = (each.data.train.captions for each in (clean, noisy))
    moved = sum(map(str.__ne__, *captions))
    assert 0 < moved <= noisy.data.train.noisy.sum() + 8
    assert noisy.data.test.captions == clean.data.test.captions
    first = loop.oddities(noisy)[0]
    assert first.kind == "noise"
    assert f"(noise 0.5, seed 1): {first.count} of 64" in str(first)
    one, other = clean.identity({}), noisy.identity({})
    assert one["train captions"] != other["train captions"]
    assert other["data.noise"] == 0.5 and "data.noise" not in one


def test_only_losses_that_ask_for_people_want_their_ids(folder, monkeypatch):
    change_data(monkeypatch, train=without_ids)
    session = opened(folder, "clip")
    assert FMFAMethod.for_task(session.settings.recipe, session.task())
    for changes in ({"losses__sdm": 1.0}, {"loss__itc_positives": "person"}):
        session = opened(folder, "clip", **changes)
        with pytest.raises(ValueError, match=r"have none; give them ids.*or :clip"):
            FMFAMethod.for_task(session.settings.recipe, session.task())
