# SPDX-License-Identifier: Apache-2.0
"""Train or evaluate a text-to-image person retriever.

    python main.py --config=configs/demo.py --workdir=runs/demo
    python main.py --config=configs/cuhk.py:plus --workdir=runs/cuhk
    python main.py --config=configs/cuhk.py --workdir=runs/cuhk --mode=eval

The same command resumes an interrupted run.
"""

import runpy
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from absl import app, flags
from ml_collections import config_flags

from configs.base import base
from data_pipeline.command import USER_ERROR, kept, local, say, speak, told
from fmfa_jax.machines.flags import set_flags
from fmfa_jax.options import flat, mistyped

FILE = "--config="
WRONG = (AttributeError, TypeError, ValueError)  # how config_flags takes a wrong key
CONFIG = config_flags.DEFINE_config_file(
    "config",
    help_string="A file of configs/, optionally with :PRESET.",
    lock_config=True,
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run's folder; runs/NAME of the config when absent."
)
MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "eval"], "Train (or resume), or only evaluate."
)

# Exit codes beside USER_ERROR. os.EX_TEMPFAIL: the same command may be tried again.
FAILURE, STOPPED = 1, 75


def main(argv: list[str]) -> None:
    """Flags -> config -> one call."""
    if len(argv) > 1:
        sys.exit(told(ValueError(f"wanted only --flags, got {argv[1:]}")))
    speak(verbosity=verbosity())
    config = CONFIG.value
    set_flags(deterministic=config.run.deterministic)
    # Imported here: after the flags, and so that a mistyped one is answered at once.
    from data_pipeline.bad_images import TooManyBadImagesError
    from fmfa_jax.run.disk import DiskError
    from fmfa_jax.training import loop

    call = loop.train if MODE.value == "train" else loop.evaluate
    try:
        done = call(config, WORKDIR.value)
    except (ValueError, OSError, FloatingPointError, TooManyBadImagesError) as error:
        end(error, USER_ERROR)
    except DiskError as error:
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


def leaving() -> None:
    """Let no SIGTERM change the exit code while Python takes its leave.

    It gives signals back to the system before it has ended.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def stopped(number: int, frame: FrameType | None) -> NoReturn:
    """End on a signal while there is nothing to save: before the first step."""
    leaving()
    name = signal.Signals(number).name
    say(f"{name}: stopped; the same command starts again", sys.stderr)
    sys.exit(STOPPED)


def verbosity() -> int:
    """The flag that absl defines; its default is for programs that log."""
    flag = flags.FLAGS["verbosity"]
    return flag.value if flag.present else 0


def parse(argv: list[str]) -> list[str]:
    """Parse the flags; what is wrong with them ends the program in one paragraph."""
    try:
        others = flags.FLAGS([with_file(word) for word in argv])
        run = WORKDIR.value or f"runs/{CONFIG.value.name}"
        flags.FLAGS.workdir = kept(run, what="--workdir")
        return others
    except (flags.Error, LookupError, OSError, *WRONG) as error:
        say(f"error: {mistyped(argv, keys(argv)) or reason(error)}", sys.stderr)
        sys.exit(USER_ERROR)


def with_file(word: str) -> str:
    """Expand the path of --config=FILE:PRESET, which has to be a file."""
    if not word.startswith(FILE):
        return word
    path = local(word.removeprefix(FILE), what="--config")
    file = path.partition(":")[0]
    if not Path(file).is_file():
        raise ValueError(f"--config: there is no file {file}; ours lie in configs/")
    return FILE + path


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


if __name__ == "__main__":
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, stopped)
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse)
