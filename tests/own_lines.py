# SPDX-License-Identifier: Apache-2.0
"""Which lines on a terminal are the project's own.

A run's are told by their form. Those of other commands are too many for that: there
`Commands` notes what our modules print, in one process for all of them, because
a new one would import everything again.
"""

import builtins
import fcntl
import json
import os
import pty
import re
import runpy
import struct
import subprocess
import sys
import termios
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
OWN = ("__main__", "configs", "data_pipeline", "docs", "fmfa_jax")
DONE = "<done> "

RUN = [
    "",
    r"\S+: \w+ on \S+, \d+ identities, \d+ images, \d+ pairs",
    r"\d+ x .+, \d+ process\(es\), batch \d+, \d+ steps an epoch",
    r"\w+ towers, \w+ attention, remat \w+.*",
    r"run folder: .+",
    r"resumed after step \d+ of \d+",
    r"(note|warning|error): .+",
    r"metrics\.jsonl: .+",
    r"checkpoint .+ is corrupt: .+",
    r"step \d+/\d+  (\w+ \S+  )+\S+ steps/s  \S+ pairs/s.*",
    r"step \d+, (val|test): text -> image R1 .+",
    r".+ on (val|test), percent:",
    r"(last|best) weights \(step \d+.*\): the same as above",
    r"\| .+ \|",
    r"activation: .+",
    r"Nothing was measured.+",
    r"\S+ is left out: it does not say its step",
    r"no TensorBoard events .+",
    r"All files of the run: .+",
    r"SIG\w+: saving a checkpoint after this step; again to leave at once",
    r"SIG\w+: saved step \d+; the same command resumes",
    r"SIG\w+: stopped; the same command starts again",
]
LIVE = r"(\[#*\.*\] )? *\d+%  step \d+/\d+.*"


def foreign(text: str, *, live: bool = False) -> list[str]:
    """The lines of a run's output that are not the run's own.

    Args:
        text: All that `main.py` wrote.
        live: A terminal took it, with its lines of progress.
    """
    forms = [*RUN, LIVE] if live else RUN
    lines = text.replace("\r\n", "\n").split("\n")
    pieces = [piece for line in lines for piece in line.split("\r")] if live else lines
    return [
        piece
        for piece in (piece.removesuffix("\x1b[K") for piece in pieces)
        if not any(re.fullmatch(form, piece) for form in forms)
    ]


def on_terminal(
    arguments: list[str], folder: Path, environ: dict[str, str], *, columns: int
) -> tuple[int, str]:
    """Run a command on a terminal; its exit code, and all that it wrote."""
    environ = {**environ, "COLUMNS": str(columns), "TERM": "xterm"}  # which come first
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    process = subprocess.Popen(
        arguments, cwd=folder, env=environ, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 4096):
            said += part
    except OSError:  # how Linux tells that nobody writes any more
        pass
    os.close(ours)
    return process.wait(), said.decode()


@dataclass(frozen=True)
class Outcome:
    """How a command ended: exit code, its output, and the lines that others wrote."""

    code: int
    said: str
    foreign: list[str]


class Commands:
    """A process that runs commands `python -m MODULE ...`, one after the other."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        """Start it in `folder`."""
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            cwd=folder,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *words: str) -> Outcome:
        """Run one command."""
        process = self._process
        process.stdin.write(json.dumps(words) + "\n")
        process.stdin.flush()
        said = []
        for line in process.stdout:
            if line.startswith(DONE):
                code, own = json.loads(line.removeprefix(DONE))
                others = [each for each in said if each and each not in own]
                return Outcome(code, "\n".join(said), others)
            said.append(line.removesuffix("\n"))
        raise AssertionError(f"{words} ended the process:\n" + "\n".join(said))

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def serve() -> None:
    """Run the commands that standard input names."""
    commands, write, own = os.fdopen(os.dup(0)), builtins.print, []

    def noted(*parts: object, sep: str = " ", **rest: object) -> None:
        if sys._getframe(1).f_globals["__name__"].startswith(OWN):
            own.extend(sep.join(map(str, parts)).split("\n"))
        write(*parts, sep=sep, **rest)

    builtins.print = noted
    for line in commands:
        module, *sys.argv[1:] = json.loads(line)
        code: object = 0
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = end.code
        write(f"\n{DONE}{json.dumps([code or 0, own])}", flush=True)
        own.clear()


if __name__ == "__main__":
    serve()
