# SPDX-License-Identifier: Apache-2.0
"""Encoding a split: order, padding, devices, processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from fmfa_jax.evaluation import SplitFeatures, encode_split
from tests.compiling import quick

ROWS, QUERIES, SIZE = 13, 21, 8


def encode_image(pixels: jax.Array) -> jax.Array:
    flat = pixels.reshape(pixels.shape[0], -1).astype(np.float32)
    return jax.numpy.sin(flat[:, :4])


def encode_text(tokens: jax.Array) -> jax.Array:
    return jax.numpy.cos(tokens.astype(np.float32))


def picture(index: int) -> np.ndarray:
    return np.full((2, 2, 3), index, np.uint8)


def caption(index: int) -> np.ndarray:
    return np.arange(index, index + 4, dtype=np.int32)


def batches(
    kind: str, count: int, *, process: int = 0, processes: int = 1
) -> list[dict[str, np.ndarray]]:
    """This process's rows of padded batches, as the loader gives them."""
    share, found = SIZE // processes, []
    for first in range(0, count, SIZE):
        ids = np.arange(first + process * share, first + (process + 1) * share)
        valid = ids < count
        ids = np.where(valid, ids, -1).astype(np.int32)
        batch = {"person": np.where(valid, ids % 5, -1).astype(np.int32)}
        if kind == "image":
            rows = [picture(i) if i >= 0 else np.zeros_like(picture(0)) for i in ids]
            batch |= {"image": np.stack(rows), "image_id": ids}
        else:
            rows = [caption(i) if i >= 0 else np.zeros_like(caption(0)) for i in ids]
            batch |= {"tokens": np.stack(rows), "pair": ids}
        found.append(batch | {"valid": valid})
    return found


def check(found: SplitFeatures) -> None:
    images = np.stack([picture(i) for i in range(ROWS)])
    texts = np.stack([caption(i) for i in range(QUERIES)])
    np.testing.assert_allclose(found.image, encode_image(images), atol=1e-6)
    np.testing.assert_allclose(found.text, encode_text(texts), atol=1e-6)
    np.testing.assert_array_equal(found.image_person, np.arange(ROWS) % 5)
    np.testing.assert_array_equal(found.text_person, np.arange(QUERIES) % 5)


@pytest.mark.parametrize("shape", [None, (8, 1), (4, 2)])
def test_rows_come_in_order_without_padding(shape: tuple[int, int] | None) -> None:
    mesh: Mesh | None = None
    if shape is not None:
        axes = (AxisType.Auto,) * 2
        mesh = jax.make_mesh(shape, ("data", "fsdp"), axis_types=axes)
    image, text = batches("image", ROWS), batches("text", QUERIES)
    check(
        encode_split(
            jax.jit(encode_image), jax.jit(encode_text), image, text, mesh=mesh
        )
    )


def test_features_are_float32_whatever_the_towers_give() -> None:
    def half(pixels: np.ndarray) -> jax.Array:
        return encode_image(pixels).astype(jax.numpy.bfloat16)

    image, text = batches("image", ROWS), batches("text", QUERIES)
    assert encode_split(half, encode_text, image, text).image.dtype == np.float32


def test_a_missing_batch_is_an_error() -> None:
    text = batches("text", QUERIES)
    with pytest.raises(ValueError, match="number 0 is row 8"):
        encode_split(encode_image, encode_text, batches("image", ROWS)[1:], text)
    with pytest.raises(ValueError, match="got no batch of 'image'"):
        encode_split(encode_image, encode_text, [], text)


def test_a_batch_that_does_not_divide_names_one_that_does() -> None:
    mesh = jax.make_mesh((3,), ("data",), axis_types=(AxisType.Auto,))
    image, text = batches("image", ROWS), batches("text", QUERIES)
    with pytest.raises(ValueError, match=r"8 rows .* 3 devices; 6 does"):
        encode_split(encode_image, encode_text, image, text, mesh=mesh)


def test_two_processes_get_all_features_and_the_same_ranks(tmp_path: Path) -> None:
    worker = Path(__file__).with_name("two_processes.py")
    root = Path(__file__).parents[3]
    paths = {"PYTHONPATH": os.pathsep.join([str(root), str(worker.parent)])}
    environment = os.environ | quick(2) | paths
    address = f"127.0.0.1:{free_port()}"
    commands = [[sys.executable, str(worker), address, str(i)] for i in range(2)]
    logs = [tmp_path / f"{i}.log" for i in range(2)]
    started = []
    for command, log in zip(commands, logs, strict=True):
        with log.open("w") as file:
            started.append(
                subprocess.Popen(command, env=environment, stdout=file, stderr=file)
            )
    try:
        codes = [process.wait(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
