# SPDX-License-Identifier: Apache-2.0
"""All command lines as one: `fmfa NAME ...`, or `python -m fmfa_jax NAME ...`.

`fmfa NAME` runs the module that `python -m` would run: nothing is done here but that.
"""

import runpy
import sys

import fmfa_jax
from data_pipeline.command import say, told
from data_pipeline.hints import unknown

COMMANDS = {
    "train": ("fmfa_jax.main", "train a retriever, or resume its run"),
    "eval": ("fmfa_jax.main --mode=eval", "measure a run, or weights"),
    "check": ("data_pipeline.check", "check data sets, picture by picture"),
    "weights": ("fmfa_jax.weights", "inspect, import and export weight files"),
    "search": ("fmfa_jax.search", "find people by sentence: index, query, serve, .."),
    "figures": ("fmfa_jax.figures", "draw curves, rankings, words, .. of a run"),
    "evaluation": (
        "fmfa_jax.evaluation",
        "measure a run by a protocol: cross-domain, rerank, .., and compare runs",
    ),
    "synthetic": ("data_pipeline.synthetic", "draw people with captions"),
    "tfds": ("data_pipeline.datasets.tfds", "prepare a data set with TFDS"),
}
"""Name -> the module, with flags of its own, and a line of help."""


def usage() -> str:
    """What `fmfa --help` says."""
    lines = ["usage: fmfa NAME [ARGUMENTS ...]", "", "Text-to-image person retrieval."]
    lines += ["", *(f"  {name:12}{text}" for name, (_, text) in COMMANDS.items()), ""]
    lines += ["fmfa NAME --help says more; behind a config it lists all keys."]
    lines += ['In bash, eval "$(fmfa --completion)" has names and keys completed.']
    return "\n".join(lines)


def completion() -> str:
    """What has bash complete subcommands, configs and keys, once it is evaluated."""
    from fmfa_jax.main import SHIPPED, base, flat

    words = [*COMMANDS, "--help", "--workdir=", *(f"--config={x}" for x in SHIPPED)]
    words += [f"--config.{key}=" for key in flat(base().to_dict())]
    return f"complete -o default -o nospace -W '{' '.join(words)}' fmfa"


def program() -> int:
    """Run the command line that the first argument names."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        say(usage())
        return 0
    if name == "--version":
        say(f"fmfa {fmfa_jax.__version__}")
        return 0
    if name == "--completion":
        say(completion())
        return 0
    if name not in COMMANDS:
        return told(
            ValueError(f"{unknown('command', name, COMMANDS)}; see fmfa --help")
        )
    module, *flags = COMMANDS[name][0].split()
    sys.argv = [f"fmfa {name}", *flags, *rest]
    runpy.run_module(module, run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(program())
