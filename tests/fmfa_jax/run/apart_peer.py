# SPDX-License-Identifier: Apache-2.0
"""One of two processes of test_apart, whose run folders lie in a store.

Usage: apart_peer.py URL, with COORDINATOR_ADDRESS, NUM_PROCESSES, PROCESS_ID, and a
cache folder of its own (XDG_CACHE_HOME). Reports as JSON on one line.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from data_pipeline.buckets import Bucket
from fmfa_jax.machines.processes import initialize_distributed, together
from fmfa_jax.run.checkpoints import Checkpoints
from fmfa_jax.run.folder import RunFolder, reading
from fmfa_jax.run.mirror import Mirror

IDENTITY = {"run": 1}
SPECS = {  # as parameters, moments and memory lie
    "params/w": (np.float32, PartitionSpec(None, "fsdp")),
    "memory/rows": (jnp.bfloat16, PartitionSpec("data")),
    "memory/written": (np.bool_, PartitionSpec(("data", "fsdp"))),
    "norm": (np.float32, PartitionSpec()),
}


def values(step: int) -> dict[str, np.ndarray]:
    """What a state holds at a step."""
    rows = np.arange(32).reshape(8, 4) * step
    return {name: (rows % 7).astype(dtype) for name, (dtype, _) in SPECS.items()}


def state(step: int, *, fsdp: int = 4) -> dict[str, jax.Array]:
    """A state that both processes share."""
    axes = (AxisType.Auto, AxisType.Auto)
    mesh = jax.make_mesh((4 // fsdp, fsdp), ("data", "fsdp"), axis_types=axes)

    def placed(value: np.ndarray, spec: PartitionSpec) -> jax.Array:
        sharding = NamedSharding(mesh, spec)
        return jax.make_array_from_callback(value.shape, sharding, lambda i: value[i])

    made = {name: placed(each, SPECS[name][1]) for name, each in values(step).items()}
    return made | {"step": placed(np.array(step, np.int32), PartitionSpec())}


def is_state(found: dict[str, jax.Array], step: int) -> bool:
    """Whether this process has its parts of the state of a step."""
    return int(found["step"]) == step and all(
        (np.asarray(part.data) == each[part.index]).all()
        for name, each in values(step).items()
        for part in found[name].addressable_shards
    )


def checkpoints(folder: RunFolder, **more: Any) -> Checkpoints:
    place = folder.local / "checkpoints"
    return Checkpoints(place, identity=IDENTITY, mirror=folder.mirror, **more)


def first() -> bool:
    """Whether this is the process that keeps the run folder."""
    return jax.process_index() == 0


def message(call: Callable[[], Any]) -> str:
    """What both are told by an error."""
    try:
        call()
    except (ValueError, RuntimeError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def saved(url: str) -> dict[str, Any]:
    """Save three steps, of which the store refuses the second."""
    said: list[str] = []
    with RunFolder(url) as folder:
        folder.take()
        kept = checkpoints(folder, keep=2, most_failed=1, say=said.append)
        with folder.kept(), kept:
            for step in (1, 2, 3):
                kept.save(step, state(step))
            (folder.local / f"of-{jax.process_index()}").touch()
    return {"said": said}


def failed(url: str) -> dict[str, Any]:
    """Save two steps, of which the store refuses the second: one too many."""

    def save() -> None:
        with folder.kept(), checkpoints(folder, keep=2) as kept:
            for step in (1, 2):
                kept.save(step, state(step))

    with RunFolder(url) as folder:
        folder.take()
        return {"error": message(save)}


def restored(url: str, *, fsdp: int = 4, damaged: int = 0) -> dict[str, Any]:
    """Restore the newest state; process 1 damages its copy of a step first."""
    fetch = Mirror.fetch

    def harmed(self: Mirror, name: str) -> None:
        fetch(self, name)
        if name == f"checkpoints/{damaged}":
            (folder.local / name / "state" / "manifest.ocdbt").write_bytes(b"?")

    with RunFolder(url) as folder:
        folder.take()
        Mirror.fetch = harmed
        try:
            found = checkpoints(folder).restore_latest(state(0, fsdp=fsdp))
        finally:
            Mirror.fetch = fetch
        left = sorted(p.name for p in folder.local.glob("checkpoints/*"))
    same = is_state(found.state, found.step) and folder.local.exists() == first()
    return {"step": found.step, "same": same, "left": left}


def measured(url: str) -> list[str]:
    """What there is to measure; each process adds a file."""
    with reading(url) as folder:
        folder.bring()
        with folder.kept():
            (folder.local / f"table-{jax.process_index()}").touch()
        return sorted(path.name for path in folder.local.iterdir())


def refused(url: str) -> str:
    """What is said of a folder that cannot be taken."""
    with RunFolder(url) as folder:
        return message(folder.take)


def main() -> None:
    """Do everything that needs two processes, once."""
    url, me = sys.argv[1], initialize_distributed()
    disk = Path(f"on-a-disk-{me.index}")
    report = {
        "saved": saved(f"{url}/run"),
        "restored": restored(f"{url}/run"),
        "spread": restored(f"{url}/run", fsdp=2),
        "damaged": restored(f"{url}/run", damaged=3),
        "measured": measured(f"{url}/run"),
        "failed": failed(f"{url}/failed"),
        "apart": refused(f"{url}/run-{me.index}"),
        "mixed": refused(f"{url}/mixed" if first() else str(disk)),
        "busy": refused(f"{url}/busy"),
    }
    with together("ending"):
        report["there"] = sorted(Bucket(f"{url}/run").list())
    print("REPORT " + json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
