# SPDX-License-Identifier: Apache-2.0
"""The same training on 1, 2, 4 and 8 devices, replicated or sharded; one compile."""

import functools
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from fmfa_jax import models
from fmfa_jax.losses.matching import ALPHA
from fmfa_jax.machines import mesh as sharding
from fmfa_jax.machines.mesh import by_process, make_mesh, to_devices
from fmfa_jax.methods import fmfa, rde, weak
from fmfa_jax.methods.views import Augmentation
from fmfa_jax.training.optimizer import AdamOptions, make_optimizer
from fmfa_jax.training.step import make_state, make_step
from tests.tiny_model import tiny_model

ROWS, STEPS, PAIRS, VOCAB = 16, 5, 48, 80
TOWERS = tiny_model(vocab_size=VOCAB)
HEADS = tiny_model(vocab_size=VOCAB, classes=6, irr_layers=1)
SUPERVISED = fmfa.Recipe(
    losses={"a_sdm": 1.0, "id": 1.0, "mlm": 1.0, "efa": 1.0},
    loss=fmfa.LossOptions(
        a_sdm_weight="plus",
        a_sdm_alpha=ALPHA["plus"],
        efa_rule="plus",
        mlm_rule="plus",
    ),
    augment=Augmentation(pad=2),
)
PAIRS_ALONE = weak.Recipe(
    losses=dict.fromkeys(weak.recipe.TERMS, 1.0),
    # Random towers are nearly collinear: a high threshold links only some.
    weak=weak.WeakOptions(threshold=0.9),
    augment=Augmentation(pad=2),
)
# Of both of RDE's batch norms the one that mixes all rows of a batch.
DOUBTED = rde.Recipe(
    losses=dict.fromkeys(rde.recipe.TERMS, 1.0),
    rde=rde.RDEOptions(width=64, batch_norm="batch"),
    augment=Augmentation(pad=2),
)


def batches():
    """Five batches of 16 pairs; each pair at most once in three of them."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (PAIRS, 32, 16, 3), dtype=np.uint8)
    tokens = np.zeros((PAIRS, 12), np.int32)
    for row in tokens:
        words = rng.integers(3, 10)
        row[: words + 2] = [VOCAB - 2, *rng.integers(1, VOCAB - 3, words), VOCAB - 1]
    person = rng.integers(0, 6, PAIRS).astype(np.int32)
    for step in range(STEPS):
        pair = (np.arange(ROWS) + ROWS * step) % PAIRS
        yield {
            "image": images[pair],
            "tokens": tokens[pair],
            "person": person[pair],
            "image_id": (pair // 2).astype(np.int32),
            "pair": pair.astype(np.int32),
        }


@functools.cache
def trained(method: str, devices: int, fsdp: int = 1, chunks: int = 1):
    """Scalars of five steps and the last parameters, as NumPy."""
    mesh = make_mesh(fsdp=fsdp, devices=jax.devices()[:devices])
    learns = fmfa.FMFAMethod(HEADS, SUPERVISED, mesh=mesh)
    if method == "weak":
        learns = weak.WeakMethod(
            TOWERS, PAIRS_ALONE, mesh=mesh, pairs=PAIRS, first_epoch=3
        )
    if method == "rde":
        model = rde.RDEMethod.sized(DOUBTED, TOWERS)
        learns = rde.RDEMethod(model, DOUBTED, mesh, pairs=PAIRS)

    # The paper's. Adam's first steps have the size of the rate whatever the gradient's,
    # so at 1e-3 rounding grew tenfold a step (2e-7, then up to 2e-5).
    def rate(step):
        return 1e-5

    optimizer = make_optimizer(rate, AdamOptions(groups="irra"))
    params = models.init_params(learns.model, 0)
    state = make_state(params, optimizer, mesh, learns)
    step = make_step(
        learns, optimizer, state, mesh=mesh, seed=0, schedule=rate, chunks=chunks
    )
    history = []
    for batch in batches():
        batch = to_devices({name: batch[name] for name in learns.batch_keys}, mesh)
        state, measured = step(state, batch)
        history.append(jax.device_get(measured.scalars))
    assert step._cache_size() == 1, "one compile for the whole run"
    return history, jax.device_get(state["params"]), state


def assert_same_params(got, want):
    """Closely: five steps move a parameter by 5e-5."""
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6), got, want
    )


SPREAD = [
    *(("fmfa", 2, 1), ("fmfa", 8, 1), ("fmfa", 4, 2)),
    *(("weak", 2, 1), ("weak", 4, 2)),
    *(("rde", 2, 1), ("rde", 4, 2)),
]


@pytest.mark.parametrize(("method", "devices", "chunks"), SPREAD)
def test_devices_and_chunks_agree(method, devices, chunks):
    """The oracle is one device with the whole batch at once."""
    want_scalars, want, _ = trained(method, 1)
    got_scalars, got, _ = trained(method, devices, chunks=chunks)
    for ours, theirs in zip(got_scalars, want_scalars, strict=True):
        for name in theirs:
            np.testing.assert_allclose(
                ours[name], theirs[name], rtol=1e-5, atol=1e-5, err_msg=name
            )
    assert_same_params(got, want)


def test_the_weak_run_mines():
    history, _, _ = trained("weak", 1)
    assert [float(row["links_per_anchor"]) > 0 for row in history] == [
        False,
        False,
        False,
        True,
        True,
    ]


@pytest.mark.parametrize("method", ["fmfa", "rde"])
def test_sharded_parameters_agree_and_are_sharded(method, monkeypatch):
    _, want, _ = trained(method, 1)
    monkeypatch.setattr(sharding, "SMALLEST_SHARDED", 64)
    _, got, state = trained(method, 8, fsdp=2)
    assert_same_params(got, want)
    kernel = state["params"]["image_tower"]["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.size * 2 == kernel.size
    moments = jax.tree.leaves(state["opt_state"])
    assert any(x.addressable_shards[0].data.size < x.size for x in moments if x.ndim)


COLLECTIVE = re.compile(
    r" = (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)"
    r"(?:-start)?\("
)


def collectives(program: str):
    """(kind, shapes that it carries) of each collective of a compiled program."""
    for line in program.splitlines():
        if found := COLLECTIVE.search(line):
            shapes = re.findall(r"[a-z]+[0-9]+\[([0-9,]*)\]", found[1])
            yield found[2], [tuple(map(int, x.split(","))) for x in shapes if x]


@pytest.fixture(scope="module", params=["fmfa", "rde"])
def sharded_program(request):
    """A step of three-layer towers on four devices that share the parameters."""
    mesh = make_mesh(fsdp=4, devices=jax.devices()[:4])
    layers = {"image_layers": 3, "text_layers": 3, "irr_layers": 2}
    model = tiny_model(classes=6, **layers, remat="elementwise")
    learns = fmfa.FMFAMethod(
        model, fmfa.Recipe(losses={"sdm": 1.0, "id": 1.0, "mlm": 1.0}), mesh=mesh
    )
    if request.param == "rde":
        model = rde.RDEMethod.sized(DOUBTED, model)
        learns = rde.RDEMethod(model, DOUBTED, mesh, pairs=PAIRS)
    optimizer = make_optimizer(lambda step: 1e-5, AdamOptions())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "SMALLEST_SHARDED", 64)
        state = make_state(models.init_params(model, 0), optimizer, mesh, learns)
    step = make_step(
        learns, optimizer, state, mesh=mesh, seed=0, schedule=lambda step: 1e-5
    )
    rows = {name: np.concatenate([x, x[:4]]) for name, x in next(batches()).items()}
    batch = to_devices({name: rows[name] for name in learns.batch_keys}, mesh)
    return step.trace(state, batch).lower().compile().as_text()


def test_devices_that_share_parameters_exchange_no_activations(sharded_program):
    """20 rows, 5 a device; 9 image and 12 text tokens, or 8 patches; 2 and 3 chosen."""
    carried = {shape for _, shapes in collectives(sharded_program) for shape in shapes}
    activations = {
        shape
        for shape in carried
        if ({5, 20} & set(shape) and {8, 9, 12, 45, 60, 180, 240} & set(shape))
        or shape[:2] in {(rows, chosen) for rows in (5, 20) for chosen in (2, 3)}
    }
    assert activations == set()


def test_they_gather_their_parameters_a_layer_at_a_time(sharded_program):
    gathered = {
        shape
        for kind, shapes in collectives(sharded_program)
        for shape in shapes
        if kind == "all-gather"
    }
    assert {(1, 64, 192), (1, 64, 256), (1, 256, 64)} <= gathered
    assert not [shape for shape in gathered if shape[0] in (2, 3) and len(shape) > 1]


def test_a_mesh_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"fsdp=3 does not divide the 8 devices.*1, 2"):
        make_mesh(fsdp=3)


def test_chunks_that_do_not_divide_are_refused():
    mesh = make_mesh(devices=jax.devices()[:4])
    with pytest.raises(ValueError, match=r"24 .* 4 devices in 4 chunks.*\[16, 32\]"):
        sharding.check_batch_size(24, mesh, chunks=4)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        sharding.check_batch_size(24, mesh, chunks=0)


def test_devices_come_process_by_process():
    hosts = [0, 0, 1, 1, 0, 0, 1, 1]  # a 2 x 4 slice of two hosts, row by row
    devices = [SimpleNamespace(id=i, process_index=p) for i, p in enumerate(hosts)]
    assert [each.id for each in by_process(devices)] == [0, 1, 4, 5, 2, 3, 6, 7]
