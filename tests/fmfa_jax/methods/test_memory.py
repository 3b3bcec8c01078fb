# SPDX-License-Identifier: Apache-2.0
"""The memory: what is written, what never enters, where the rows lie."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from data_pipeline.records import Pair, Picture, Split
from fmfa_jax.methods import Task
from fmfa_jax.methods.weak import Recipe, WeakMethod
from fmfa_jax.methods.weak.memory import (
    bank_rows,
    bank_shardings,
    enters,
    init_bank,
    take_rows,
    update_bank,
)
from fmfa_jax.methods.weak.quality import check_indices, start_warning
from tests.tiny_model import TINY
from tests.weak_case import compare

REFERENCE = np.load(Path(__file__).parents[2] / "reference" / "weak.npz")
GROUPS = sorted({name.split("/")[0] for name in REFERENCE.files})

update = jax.jit(update_bank, static_argnames=("rate", "mesh"))


def left_out(bank, image, text, index):
    """How many pairs of a batch do not enter the bank."""
    return int(jnp.sum(~enters(bank, image, text, index)))


def rows_of(bank, name):
    """The rows of real pairs in float32."""
    slots = jnp.arange(int(bank["pairs"]))[:, None]
    both = take_rows(bank, slots)
    return np.asarray(both[0 if name == "image" else 1])[:, 0]


def random_rows(seed, rows=5, width=4):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(rows, width)), jnp.float32) for _ in "it"]


@pytest.mark.parametrize("group", GROUPS)
def test_update_is_the_official_one(group):
    def of(name):
        return jnp.asarray(REFERENCE[f"{group}/{name}"])

    pairs, width = of("in/mem_v").shape
    bank = init_bank(pairs, width)
    every = jnp.arange(pairs)
    bank = update(bank, of("in/mem_v"), of("in/mem_t"), every, ready=False)
    np.testing.assert_array_equal(rows_of(bank, "image"), of("in/mem_v"))
    batch = of("in/fv"), of("in/ft"), of("in/index")
    assert left_out(bank, *batch) == 0
    result = update(bank, *batch, ready=True)
    for part, name in (("image", "mem_v"), ("text", "mem_t")):
        wanted = REFERENCE[f"{group}/out/{name}"]
        np.testing.assert_allclose(rows_of(result, part), wanted, rtol=1e-5)
    lengths = np.linalg.norm(rows_of(result, "image"), axis=1)
    np.testing.assert_allclose(result["inverse_norm"][:pairs], 1 / lengths, rtol=1e-5)
    assert not np.asarray(result["written"])[pairs:].any()


def test_the_first_epoch_only_writes_and_a_first_visit_is_whole():
    image, text = random_rows(0)
    index = jnp.asarray([7, 1, 4, 0, 9])
    bank = update(init_bank(10, 4), image, text, index, ready=False)
    np.testing.assert_array_equal(rows_of(bank, "image")[index], image)
    np.testing.assert_array_equal(np.flatnonzero(bank["written"]), np.sort(index))
    again, _ = random_rows(1)
    over = update(bank, again, text, index, ready=False)
    np.testing.assert_array_equal(rows_of(over, "image")[index], again)
    # Pair 3 was in a batch that the first epoch dropped.
    other = jnp.asarray([3, 1, 4, 0, 9])
    later = rows_of(update(bank, again, text, other, ready=True), "image")
    np.testing.assert_array_equal(later[3], again[0])
    np.testing.assert_allclose(later[1], 0.9 * again[1] + 0.1 * image[1], rtol=1e-5)
    np.testing.assert_array_equal(later[7], image[0])


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("ready", [False, True])
def test_what_is_not_finite_never_enters(poison, ready):
    image, text = random_rows(0)
    index = jnp.asarray([7, 1, 4, 0, 9])
    bank = update(init_bank(10, 4), image, text, index, ready=False)
    again = random_rows(1)
    bad_image, bad_text = again[0].at[1, 2].set(poison), again[1].at[3, 0].set(poison)
    result = update(bank, bad_image, bad_text, index, ready=ready)
    assert left_out(bank, bad_image, bad_text, index) == 2
    for part, old, new in (("image", image, again[0]), ("text", text, again[1])):
        rows = rows_of(result, part)
        share = 0.9 if ready else 1.0
        wanted = share * new + (1 - share) * old
        for place, pair in enumerate(index):
            kept = place in (1, 3)
            np.testing.assert_allclose(
                rows[pair], old[place] if kept else wanted[place], rtol=1e-5
            )


def test_what_bfloat16_cannot_hold_never_enters():
    image, text = random_rows(0)
    largest = image.at[2, 0].set(np.finfo(np.float32).max)
    bank = init_bank(10, 4, dtype="bfloat16")
    result = update(bank, largest, text, jnp.arange(5), ready=False)
    assert left_out(bank, largest, text, jnp.arange(5)) == 1
    assert not bool(result["written"][2])


def test_of_equal_indices_the_first_counts_and_strangers_are_left_out():
    image, text = random_rows(0)
    index = jnp.asarray([2, 5, 2, -1, 10])
    result = update(init_bank(10, 4), image, text, index, ready=False)
    assert left_out(init_bank(10, 4), image, text, index) == 3
    np.testing.assert_array_equal(np.flatnonzero(result["written"]), [2, 5])
    np.testing.assert_array_equal(rows_of(result, "image")[2], image[0])


@pytest.mark.parametrize("ready", [False, True])
def test_a_step_that_is_not_taken_writes_nothing(ready):
    index = jnp.asarray([7, 1, 4, 0, 9])
    bank = update(init_bank(10, 4), *random_rows(0), index, ready=False)
    batch = *random_rows(1), index
    for taken, wanted in ((False, bank), (True, update(bank, *batch, ready=ready))):
        got = update(bank, *batch, ready=ready, taken=taken)
        jax.tree.map(np.testing.assert_array_equal, got, wanted)


def train_step(bank, image, text, index, ready, *, mesh=None):
    """Loss against the old bank, then the update, as a training step does it."""

    def loss(image, text):
        features = {"image": image, "text": text}
        return compare(features, index, bank, {"global": 1.0}, ready=ready, mesh=mesh)

    grad = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (_, measured), gradients = grad(image, text)
    taken = jnp.isfinite(optax.tree.norm(gradients))
    ready = jnp.asarray(ready, jnp.int32)
    method = WeakMethod(TINY, Recipe(losses={"global": 1.0}), mesh, first_epoch=1)
    state = {"step": ready, "memory": bank}
    new = method.advance(state, measured.update, taken)
    return new["memory"], measured, gradients


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_donated_bank_is_changed_in_place(dtype):
    bank = jax.eval_shape(partial(init_bank, 40_000, 16, dtype=dtype))
    rows = jax.ShapeDtypeStruct((4, 16), jnp.float32)
    index = jax.ShapeDtypeStruct((4,), jnp.int32)
    ready = jax.ShapeDtypeStruct((), bool)
    step = jax.jit(train_step, donate_argnums=0)
    memory = step.lower(bank, rows, rows, index, ready).compile().memory_analysis()
    size = sum(np.prod(leaf.shape) * leaf.dtype.itemsize for leaf in bank.values())
    assert memory.temp_size_in_bytes < 0.4 * size
    assert memory.alias_size_in_bytes > 0.99 * size


def test_one_compilation_serves_the_whole_run():
    traces = []

    @jax.jit
    def step(*arguments):
        traces.append(1)
        return train_step(*arguments)

    bank = init_bank(10, 4)
    for number in range(4):
        image, text = (rows + 3 for rows in random_rows(number))  # all are near
        ready = jnp.asarray(number >= 2)
        index = jnp.arange(5) + 5 * (number % 2)
        bank, measured, gradients = step(bank, image, text, index, ready)
        assert (float(measured.scalars["global"]) == 0) == (number < 2)
        assert bool(measured.records["valid"].any()) == (number >= 2)
        assert all(np.isfinite(part).all() for part in gradients)
        assert any(np.asarray(part).any() for part in gradients) == (number >= 2)
    assert len(traces) == 1


def mesh_of(data, fsdp=1):
    devices = np.asarray(jax.devices()[: data * fsdp]).reshape(data, fsdp)
    return Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def assert_close(got, wanted):
    """Each array, as a whole, to 1e-5 of its length."""
    for left, right in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        error = np.linalg.norm(np.asarray(left) - np.asarray(right))
        assert error <= 1e-5 * np.linalg.norm(right)


@pytest.mark.parametrize(
    ("data", "fsdp", "dtype"), [(4, 1, "float32"), (2, 2, "bfloat16")]
)
def test_a_sharded_bank_equals_one_device(data, fsdp, dtype):
    mesh = mesh_of(data, fsdp)
    pairs, width, size = 300, 8, 8  # 300 rows do not divide by 256
    rng = np.random.default_rng(3)
    single = init_bank(pairs, width, dtype=dtype)
    shared = init_bank(pairs, width, dtype=dtype, mesh=mesh)
    assert jax.tree.map(jnp.shape, shared) == jax.tree.map(jnp.shape, single)
    assert shared["image"].sharding.spec == P("data")
    assert shared["image"].addressable_shards[0].data.shape[0] * data == 512
    everything = [
        jnp.asarray(rng.normal(size=(pairs, width)), jnp.float32) for _ in "it"
    ]
    one = jax.jit(train_step)
    many = jax.jit(partial(train_step, mesh=mesh))
    every = jnp.arange(pairs)
    single = update(single, *everything, every, ready=False)
    shared = jax.device_put(single, bank_shardings(mesh))
    spread = NamedSharding(mesh, P(("data", "fsdp")))
    for _ in range(2):
        index = rng.choice(pairs, size=size, replace=False).astype(np.int32)
        noise = rng.normal(size=(2, size, width)) * 0.2
        image, text = (
            np.asarray(part[index] + n, np.float32)
            for part, n in zip(everything, noise, strict=True)
        )
        on_mesh = jax.device_put((image, text, index), spread)
        wanted = one(single, image, text, index, np.bool_(True))
        got = many(shared, *on_mesh, np.bool_(True))
        theirs, ours = wanted[1], got[1]
        assert theirs.records["valid"].any()
        np.testing.assert_array_equal(ours.records["slot"], theirs.records["slot"])
        assert_close((ours.scalars, got[2]), (theirs.scalars, wanted[2]))
        single, shared = wanted[0], got[0]
        assert int(ours.scalars["memory_skipped"]) == 0
    assert shared["image"].sharding.spec == P("data")
    for name in single:
        np.testing.assert_allclose(
            np.asarray(shared[name]), np.asarray(single[name]), rtol=1e-6
        )


def test_the_layout_does_not_depend_on_a_power_of_two_of_devices():
    assert {bank_rows(300, mesh=mesh_of(n)) for n in (1, 2, 4, 8)} == {bank_rows(300)}
    assert bank_rows(300, mesh=mesh_of(3)) % 3 == 0


def test_bank_arguments_are_checked():
    with pytest.raises(ValueError, match="at least one training pair, got 0"):
        init_bank(0, 4)
    with pytest.raises(ValueError, match=r"wanted one of .* got 'float16'"):
        init_bank(4, 4, dtype="float16")


def test_a_batch_that_repeats_a_pair_is_refused():
    check_indices(np.array([3, 1, 2]), pairs=4)
    with pytest.raises(ValueError, match="got 1, 3 more than once"):
        check_indices(np.array([3, 1, 3, 1, 2]), pairs=4)
    with pytest.raises(ValueError, match="wanted 0 to 3, got -1, 4"):
        check_indices(np.array([-1, 4, 2]), pairs=4)
    with pytest.raises(ValueError, match=r"0, 1, 2, 3, 4, \.\.\. \(9 in all\)"):
        check_indices(np.repeat(np.arange(9), 2), pairs=9)


def test_a_data_set_smaller_than_a_batch_is_refused():
    recipe = Recipe(losses={"global": 1.0})
    task = partial(Task, TINY, mesh_of(1), dataset="x", batch_size=8, steps_per_epoch=1)

    def split(pairs):
        picture = Picture(file="x", path="x", person=0)
        return Split("train", (picture,), (Pair(0, "a man"),) * pairs)

    assert WeakMethod.for_task(recipe, task(split=split(8))).pairs == 8
    with pytest.raises(ValueError, match=r"data set has 7, train\.batch_size is 8"):
        WeakMethod.for_task(recipe, task(split=split(7)))


def test_a_collinear_start_is_told():
    assert start_warning(0.02, threshold=0.7) is None
    assert "97%" in start_warning(0.97, threshold=0.7)
