# SPDX-License-Identifier: Apache-2.0
"""`main.py`, `fmfa train` and `fmfa eval`: flags -> config -> one call."""

import ast
import inspect
import runpy
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from absl import app, flags
from ml_collections import config_flags

from configs.base import PRESETS, base
from data_pipeline.command import USER_ERROR, called, kept, local, say, speak, told
from data_pipeline.hints import near
from fmfa_jax.keys import comments, described
from fmfa_jax.machines.flags import set_flags
from fmfa_jax.machines.stopping import STOPPED, leaving, stopping_on_signals
from fmfa_jax.options import flat, mistyped

# Installed beside our packages under the name that configs import, users' own included.
BASE = Path(inspect.getfile(base))
SHIPPED = {p.stem: p for p in sorted(BASE.parent.glob("*.py")) if p != BASE}
"""Name -> file of each config that can be asked for by name."""

FILE = "--config="
HELP = ("--help", "-help", "-h")
WRONG = (AttributeError, TypeError, ValueError)  # how config_flags takes a wrong key
CONFIG = config_flags.DEFINE_config_file(
    "config",
    help_string="A config's name, or a file like those of configs/; both take :PRESET.",
    lock_config=True,
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run's folder; runs/NAME of the config when absent."
)
MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "eval"], "Train (or resume), or only evaluate."
)

FAILURE = 1
"""An exit code, beside USER_ERROR and STOPPED."""


def main(argv: list[str]) -> None:
    """Flags -> config -> one call."""
    if len(argv) > 1:
        sys.exit(told(ValueError(f"wanted only --flags, got {argv[1:]}")))
    speak(verbosity=verbosity())
    config = CONFIG.value
    set_flags(deterministic=config.run.deterministic)
    # Imported here: after the flags, and so that a mistyped one is answered at once.
    from data_pipeline.bad_images import TooManyBadImagesError
    from fmfa_jax.run.disk import DiskError, SaveError
    from fmfa_jax.training import loop

    call = loop.train if MODE.value == "train" else loop.evaluate
    try:
        done = call(config, WORKDIR.value)
    except (ValueError, OSError, FloatingPointError, TooManyBadImagesError) as error:
        end(error, USER_ERROR)
    except (DiskError, SaveError) as error:  # the second where another process saves
        end(error, FAILURE)
    finally:
        leaving()
    if done is False:
        sys.exit(STOPPED)


def end(error: Exception, code: int) -> NoReturn:
    """Say in one paragraph what is wrong, and end with an exit code."""
    from fmfa_jax.machines.lifecycle import leave

    told(error, verbosity=verbosity())
    leave(error)
    sys.exit(code)


def verbosity() -> int:
    """The flag that absl defines; its default is for programs that log."""
    flag = flags.FLAGS["verbosity"]
    return flag.value if flag.present else 0


def parse(argv: list[str]) -> list[str]:
    """Parse the flags; what is wrong with them ends the program in one paragraph."""
    words = argv
    try:
        words = list(with_files(argv))
        asked = [word for word in words if word not in HELP]
        if asked != words:
            helped(asked)
        others = flags.FLAGS(words)
        run = WORKDIR.value or f"runs/{CONFIG.value.name}"
        flags.FLAGS.workdir = kept(run, what="--workdir")
        return others
    except (flags.Error, LookupError, OSError, *WRONG) as error:
        say(f"error: {mistyped(words, keys(words)) or reason(error)}", sys.stderr)
        sys.exit(USER_ERROR)


def with_files(argv: list[str]) -> Iterator[str]:
    """Yield the arguments, with what --config names expanded to a file's path."""
    words = iter(argv)
    for word in words:
        if word == FILE[:-1]:
            word = FILE + next(words, "")
        yield FILE + found(word.removeprefix(FILE)) if word.startswith(FILE) else word


def found(config: str) -> str:
    """The file of NAME:PRESET, or of FILE:PRESET, which has to be there."""
    path = local(config, what="--config")
    file, colon, preset = path.partition(":")
    file = str(SHIPPED.get(file, file))
    if not Path(file).is_file():
        similar = near(Path(file).stem, SHIPPED)
        hint = f"; did you mean {' or '.join(similar)}?" if similar else ""
        raise ValueError(
            f"--config: there is no file {file}{hint or '.'} Our own configs are "
            f"{', '.join(SHIPPED)}"
        )
    return file + colon + preset


def helped(words: list[str]) -> NoReturn:
    """Say what may be asked for and, where a config is named, all its keys."""
    # A reader such as head may leave early.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    say(usage())
    if any(word.startswith(FILE) for word in words):
        flags.FLAGS(words)
        config = CONFIG.value.to_dict()
        say(f"\nkeys of {config['name']}, set by --config.KEY=VALUE:\n")
        why = comments(BASE.read_text(encoding="utf-8"))
        say("\n".join(described(config, why)))
    sys.exit(0)


def usage() -> str:
    """The flags, and the configs that can be asked for by name."""
    name = called("python main.py")
    lines = [f"usage: {name} --config=NAME[:PRESET] [--FLAG=VALUE ..]", ""]
    for flag in (CONFIG, WORKDIR, MODE):
        lines.append(f"  --{flag.name:12}{flags.FLAGS[flag.name].help}")
    lines += ["  --verbosity=1 Also what libraries say, and the traceback of an error."]
    lines += ["", f"presets: {', '.join(PRESETS)}", "configs:"]
    for config, file in SHIPPED.items():
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        lines.append(f"  {config:14}{text.partition(chr(10))[0]}")
    return "\n".join([*lines, "", f"{name} --config=NAME --help lists the keys."])


def reason(error: BaseException) -> str:
    """What a config file refuses, such as a preset, without the way to it."""
    if "Traceback" not in str(error):
        return str(error)
    while isinstance(error.__context__, ValueError):
        error = error.__context__
    return f"--config: {error}"


def keys(argv: list[str]) -> list[str]:
    """Dotted keys of the config that is asked for, or else of any."""
    made = base()
    for word in argv:
        file, _, preset = word.removeprefix(FILE).partition(":")
        if word.startswith(FILE):
            with suppress(Exception):  # which has been told of
                made = runpy.run_path(file)["get_config"](*filter(None, [preset]))
    return list(flat(made.to_dict()))


def program() -> NoReturn:
    """Run as the program that this process is."""
    wanted = "wanted a config's name or file, as in --config=demo"
    flags.register_validator(CONFIG, lambda config: config is not None, wanted)
    with stopping_on_signals():
        app.run(main, flags_parser=parse)


if __name__ == "__main__":
    program()
