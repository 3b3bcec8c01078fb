# SPDX-License-Identifier: Apache-2.0
r"""The check of a card: is training right and fast on it? Half an hour on one GPU.

    python -m benchmarks.accelerator --out check     # on a machine with a GPU
    python -m benchmarks.accelerator --cpu           # all of it, small, anywhere

Each part runs in its own process; one that fails or crashes loses nothing else. Rows
are appended to accelerator.jsonl in the folder --out as they are measured. A table
follows each part, and accelerator.md holds all of them. It needs JAX, Flax, Optax,
Orbax and PyTorch; TensorFlow, ml_collections and a tokenizer may be absent.
"""

import importlib
import sys
import tempfile
import time
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import common
from benchmarks.accelerator.run import Row, Run
from fmfa_jax import files

# CUDA graphs would hide which operation a kernel belongs to.
_NO_GRAPHS = common.xla_flags("--xla_gpu_enable_command_buffer=")
# The parts that hold a whole step take the card; the others share it with torch.
_WHOLE_CARD = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
_SHARED = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
# Times mean nothing there: it compiles in half the time.
_ON_CPU = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
_ON_CPU["CUDA_VISIBLE_DEVICES"] = ""
# Parity wants the host's CPU beside the card.
_ON_A_CARD = {"JAX_PLATFORMS": ""}


@dataclass(frozen=True)
class Part:
    """A part of the check, in a process of its own.

    Attributes:
        title: Of its table.
        function: "module.function", which takes a Run.
        environment: Its variables on a card.
    """

    title: str
    function: str
    environment: dict[str, str] = field(default_factory=lambda: _WHOLE_CARD)


# In this order: where the minutes do not suffice, the last ones are left out.
PARTS = {
    "card": Part("The card and its two ceilings", "card.ceilings", _SHARED),
    "parity": Part("Two layers, beside the host's CPU in float32", "parity.beside_cpu"),
    "step": Part("The whole step of FMFA", "step.grid"),
    "peer": Part("The released computation in eager torch", "others.peer"),
    "methods": Part("The whole step of each method", "step.methods"),
    "toggles": Part("One choice changed", "step.toggles"),
    "compile": Part("The whole step compiles", "step.compiles"),
    "removal": Part("Cost by removal", "step.removal"),
    "profile": Part("The longest operations of a step", "others.profiled", _NO_GRAPHS),
    "attention": Part(
        "Attention, value and gradient", "others.attention_alone", _SHARED
    ),
    "repeat": Part("Five steps twice, and resumed", "repeat.twice"),
    "feed": Part("A step fed with pictures", "feed.fed"),
    "mining": Part("Mining links in the memory", "others.mining", _SHARED),
}


def main() -> int:
    """Run all parts, or one of them in this process; return whether a row failed."""
    options = _options()
    if options.only:
        run = _run(options, options.only)
        module, function = PARTS[options.only].function.split(".")
        part = importlib.import_module(f"benchmarks.accelerator.{module}")
        getattr(part, function)(run)
        common.answer({"where": common.where()})
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    options.until = time.time() + 60 * options.minutes
    _run(options, "").file.write_text("")
    texts: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        options.folder = Path(name)
        for part in options.parts:
            texts.append(_measure(part, options))
            print(texts[-1], flush=True)
            files.write_text(options.out / "accelerator.md", "\n".join(texts))
    print("\n# All tables\n", *texts, sep="\n", flush=True)
    rows = [row for part in options.parts for row in _run(options, part).rows(part)]
    return int(any("error" in row for row in rows))


def _options() -> Namespace:
    parser = common.parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path(), help="for the results")
    parser.add_argument("--minutes", type=float, default=30, help="of all parts")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--cpu", action="store_true", help="small, and on the CPU")
    parser.add_argument("--only", choices=PARTS, help="one part, in this process")
    parser.add_argument("--until", type=float, help="end of the minutes, for --only")
    parser.add_argument("--folder", type=Path, help="scratch folder, for --only")
    options = parser.parse_args()
    options.out = options.out.absolute()
    return options


def _run(options: Namespace, part: str) -> Run:
    file = options.out / "accelerator.jsonl"
    return Run(part, file, options.folder, options.cpu, options.until)


def _measure(name: str, options: Namespace) -> str:
    """Run a part in its own process; return its table."""
    run, part, start, about = _run(options, name), PARTS[name], time.time(), ""
    if run.left <= 0:
        run.append({"case": "all", "error": "left out: the minutes were over"})
    else:
        flags = common.flags(options, "out", "until", "folder")
        environment = _ON_CPU if options.cpu else part.environment | _ON_A_CARD
        try:
            answer = common.child(
                "benchmarks.accelerator",
                *("--only", name, *flags, *["--cpu"] * options.cpu),
                environment=environment
                | {"JAX_COMPILATION_CACHE_DIR": str(options.folder / "programs")},
                # A part ends by itself; this is for one that hangs.
                limit=run.left + 15,
            )
            about = f", peak {answer['peak_gb']:.2f} GB. {answer['where']}"
        except RuntimeError as error:
            run.append({"case": "the process", "error": str(error)[-1500:]})
    return table(part.title, run.rows(name), f"{time.time() - start:.0f} s{about}")


def table(title: str, rows: list[Row], taken: str) -> str:
    """Return a part's rows as Markdown, and what failed below them."""
    good = [row for row in rows if "error" not in row]
    header = dict.fromkeys(key for row in good for key in row)
    names = [key for key in header if key not in ("part", "case")]
    cells = [
        [row["case"], *(common.cell(row.get(key)) for key in names)] for row in good
    ]
    lines = [f"## {title}", ""]
    if good:
        lines += [*common.markdown(["", *names], cells), ""]
    for row in rows:
        if "error" in row:
            lines += [f"- {row['case']}: {' '.join(row['error'].split())}", ""]
    return "\n".join([*lines, taken, ""])


if __name__ == "__main__":
    sys.exit(main())
