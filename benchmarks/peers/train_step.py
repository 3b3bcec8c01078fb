# SPDX-License-Identifier: Apache-2.0
"""PyTorch's engine of `benchmarks.train_step`, in its own process without JAX.

python -m benchmarks.peers.train_step FOLDER steps --dtype bfloat16
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import common
from benchmarks.peers import fmfa
from benchmarks.train_step_case import LR, WEIGHTS, read_batch, read_sizes

DEVICE = common.torch_device()


def build(folder: Path) -> fmfa.FMFA:
    """Return the case's model with its weights."""
    with torch.device("meta"):
        model = fmfa.FMFA(_sizes(folder))
    model.to_empty(device=DEVICE)
    model.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS), strict=True)
    return model


def batch_of(folder: Path, rows: int | None = None) -> dict[str, torch.Tensor]:
    """Return the case's batch as a loader would: with normalised float pictures."""
    batch = read_batch(folder, rows)
    given = {
        name: torch.from_numpy(values).to(DEVICE) for name, values in batch.items()
    }
    return {
        "pixels": fmfa.normalized(given["image"]),
        # The released loader masks in place, so all losses see the masked captions.
        "ids": given["masked"].long(),
        "masked": given["masked"].long(),
        "labels": given["labels"].long(),
        "person": given["person"].long(),
    }


def steps(
    folder: Path, dtype: str, count: int, rows: int | None = None
) -> dict[str, Any]:
    """Train; return the seconds of later steps and what the first one measured."""
    model, batch = build(folder), batch_of(folder, rows)
    optimizer = fmfa.adam(model, lr=LR)

    def step() -> dict[str, torch.Tensor]:
        return fmfa.train_step(model, optimizer, batch, dtype=dtype)

    first = {name: float(value) for name, value in step().items()}
    squares = [p.grad.double().square().sum() for p in model.parameters()]
    first["grad_norm"] = float(sum(squares)) ** 0.5

    return {"first": first} | common.timed(step, count)


@torch.no_grad()
def features(folder: Path, dtype: str) -> dict[str, Any]:
    """Write the global features of the batch and return the file."""
    model, batch = build(folder), batch_of(folder)
    with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == "bfloat16"):
        image = model.base_model.visual(batch["pixels"])[:, 0]
        tokens = model.base_model.encode_text(batch["ids"])
    text = fmfa.end_tokens(tokens, batch["ids"])
    out = folder / f"torch-{dtype}.npz"
    np.savez(out, image=image.float().cpu().numpy(), text=text.float().cpu().numpy())
    return {"features": str(out)}


def flops(folder: Path, dtype: str) -> dict[str, Any]:
    """Return the FLOPs of value and gradient by torch's counter, computing nothing."""
    del dtype
    batch = {k: v.to("meta") for k, v in batch_of(folder).items()}
    with torch.device("meta"):
        model = fmfa.FMFA(_sizes(folder))
        # On this device attention consists of products, which the counter sees.
        with FlopCounterMode(display=False) as counter:
            sum(fmfa.objective(model(batch), batch).values()).backward()
    return {"flops": counter.get_total_flops()}


def _sizes(folder: Path) -> fmfa.Sizes:
    known = {field.name for field in fields(fmfa.Sizes)}
    return fmfa.Sizes(**{k: v for k, v in read_sizes(folder).items() if k in known})


_TASKS = {"steps": steps, "features": features, "flops": flops}


def main() -> None:
    """Carry out one task and pass the result to the parent."""
    parser = common.parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("task", choices=_TASKS)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rows", type=int, help="train on the first rows alone")
    parser.add_argument("--tf32", choices=("on", "off"), default="on")
    options = parser.parse_args()
    for library in (torch.backends.cuda.matmul, torch.backends.cudnn):
        library.allow_tf32 = options.tf32 == "on"
    extra = (options.steps, options.rows) if options.task == "steps" else ()
    common.answer(_TASKS[options.task](options.folder, options.dtype, *extra))


if __name__ == "__main__":
    main()
