# SPDX-License-Identifier: Apache-2.0
"""Command lines: a program and its arguments -> message. `{}` is an empty folder."""

import contextlib
import importlib
import io
import shlex
from pathlib import Path

from tests.bad_inputs.table import Reader

PROGRAMS = {
    "check": "data_pipeline.check",
    "tfds": "data_pipeline.datasets.tfds.__main__",
    "synthetic": "data_pipeline.synthetic.__main__",
    "weights": "fmfa_jax.weights.__main__",
    "search": "fmfa_jax.search.__main__",
    "figures": "fmfa_jax.figures.__main__",
    "evaluation": "fmfa_jax.evaluation.__main__",
}


class Refused(Exception):
    """What a program said before it ended with the exit code of a user's error."""


def run(folder: Path, line: str) -> None:
    program, *words = shlex.split(line.replace("{}", str(folder)))
    main, said = importlib.import_module(PROGRAMS[program]).main, io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(words)
        except SystemExit as ended:
            code = ended.code
    assert code == 2 and said.getvalue().startswith("error: ")
    raise Refused(said.getvalue())


ROWS = [
    ("check", "arguments are required"),
    ("check {} --name cuhk", "'cuhk' is not known; did you mean cuhk_pedes"),
    ("check {} --no-such", "unrecognized arguments: --no-such"),
    ("check {} --name folder --tokenizer {}/t", "wanted 'clip' or a folder"),
    ("check {} --verbosity=x", "argument --verbosity: invalid int value: 'x'"),
    ("tfds", "arguments are required"),
    ("tfds nothing --manual_dir={} --data_dir={}", "invalid choice: 'nothing'"),
    ("tfds folder --manual_dir={} --data_dir={}/out", "no folder data set at"),
    ("tfds folder --manual_dir={} --data_dir=gs://b", "mount the gs:// address"),
    ("synthetic", "arguments are required"),
    ("synthetic {}/out --identities 0", "identities"),
    ("synthetic {}/out --identities many", "invalid int value: 'many'"),
    ("synthetic {}/out --style oil", "invalid choice: 'oil'"),
    ("synthetic s3://b/out", "mount the s3:// address"),
    ("weights", "arguments are required"),
    ("weights melt {}", "invalid choice: 'melt'"),
    ("weights inspect {}/none", "no weight file at"),
    ("weights inspect {}", "no weights in the folder"),
    ("weights inspect ViT-B/16", "models are not downloaded by name"),
    ("weights import {}/none {}/out", "no weight file at"),
    ("weights import {}/none {}/out --image-size 5", "--image-size"),
    ("weights import {}/none {}/out --stride x", "--stride"),
    ("weights import {}/none {}/out --activation relu", "invalid choice: 'relu'"),
    ("weights export {}/none {}/out", "arguments are required: --to"),
    ("weights export --to onyx {}/none {}/out", "invalid choice: 'onyx'"),
    ("weights export --to hf {}/none {}/out", "no weight file at"),
    ("search", "arguments are required"),
    ("search find {}", "invalid choice: 'find'"),
    ("search index {}/none --model {}/m --out {}/out", "no weight file at"),
    ("search index {} --out {}/out", "arguments are required: --model"),
    ("search query {} man", "no index at"),
    ("search query {} man --top 0", "--top"),
    ("search query {} man --sheet {}/x.txt", "wanted a name that ends in .png or .jpg"),
    ("search query {} man --sheet {}/a/x.png", "there is no folder"),
    ("search add {}", "no index at"),
    ("search remove {}", "wanted either files and folders to remove, or --missing"),
    ("search remove {} --missing", "no index at"),
    ("search serve {}", "no index at"),
    ("search serve {} --port x", "--port"),
    ("figures", "arguments are required"),
    ("figures curves {}", "No such file or directory"),
    ("figures worst {}", "expected a run folder"),
    ("figures words {} --pair -1", "expected a run folder"),
    ("evaluation", "arguments are required"),
    ("evaluation magic {}", "invalid choice: 'magic'"),
    ("evaluation hubness {}", "is no run folder: say where to write"),
    ("evaluation hubness {}/m --out {}/out", "no run folder or weight file"),
    ("evaluation hubness {} cuhk --out {}/out", "wanted NAME:ROOT"),
    (
        "evaluation hubness {} nothing:{} --out {}/out",
        "is not known",
    ),
    ("evaluation compare {}", "expected a run folder"),
]

READERS = [Reader("command lines", run, Refused, ROWS)]
