# SPDX-License-Identifier: Apache-2.0
"""What tests of indexes share."""

import json
import random
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from fmfa_jax import search
from fmfa_jax.search.shards import checksum

SMALL = {"batch_size": 8, "save_every": 8}


def content(index: Path) -> dict[str, np.ndarray]:
    """All embeddings of an index by file."""
    gallery = search.Gallery(index)
    rows = [row for shard in gallery.shards for row in np.asarray(shard.rows)]
    found = {gallery.file(i): row for i, row in enumerate(rows)}
    assert len(found) == len(gallery) == len(rows)
    return found


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(
        np.array_equal(first[file], second[file]) for file in first
    )


def flipped(path: Path, rng: random.Random) -> None:
    """Flip one bit of a file, which gets a new inode: the old may be mapped."""
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.unlink()
    path.write_bytes(data)


def made_old(index: Path) -> Path:
    """Turn an index into one of version 2, which had no digests."""
    for path in (index / "shards").iterdir():
        tensors = load_file(path)
        old = {n: tensors[n] for n in ("rows", "ends", "sizes", "mtimes", "names")}
        path.unlink()
        save_file(old, path, metadata={"checksum": checksum(old.values())})
    record = json.loads((index / "index.json").read_text())
    del record["sha256"], record["tokenizer_sha256"]
    for shard in record["shards"]:
        del shard["sha256"]
    for bad in record["bad"]:
        del bad["ctime_ns"]
    (index / "index.json").write_text(json.dumps({**record, "version": 2}))
    return index
