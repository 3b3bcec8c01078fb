# SPDX-License-Identifier: Apache-2.0
"""Train or evaluate a text-to-image person retriever.

    python main.py --config=configs/demo.py --workdir=runs/demo
    python main.py --config=configs/cuhk.py:plus --workdir=runs/cuhk
    python main.py --config=configs/cuhk.py --workdir=runs/cuhk --mode=eval

The same command resumes an interrupted run.
"""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from configs.base import base
from fmfa_jax.files import local
from fmfa_jax.machines.flags import set_flags
from fmfa_jax.options import flat, mistyped

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

# Exit codes. os.EX_TEMPFAIL says that the same command may be tried again.
FAILURE, USER_ERROR, STOPPED = 1, 2, 75


def main(argv: list[str]) -> None:
    """Flags -> config -> one call."""
    if len(argv) > 1:
        raise app.UsageError(f"wanted only --flags, got {argv[1:]}")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # Orbax tells of every file it opens
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # as data_pipeline.prefetch
    config = CONFIG.value
    set_flags(deterministic=config.run.deterministic)
    # Imported here: after the flags, and so that a mistyped one is answered at once.
    from data_pipeline.bad_images import TooManyBadImagesError
    from fmfa_jax.run.disk import DiskError
    from fmfa_jax.training import loop

    call = loop.train if MODE.value == "train" else loop.evaluate
    try:
        done = call(
            config, local(WORKDIR.value or f"runs/{config.name}", what="--workdir")
        )
    except (ValueError, OSError, FloatingPointError, TooManyBadImagesError) as error:
        end(error, USER_ERROR)
    except DiskError as error:
        end(error, FAILURE)
    if done is False:
        sys.exit(STOPPED)


def end(error: Exception, code: int) -> NoReturn:
    """Say in one paragraph what is wrong, and end with an exit code.

    With --verbosity=1 the traceback is shown instead.
    """
    from fmfa_jax.machines.lifecycle import leave

    if logging.get_verbosity() > logging.WARNING:
        raise error
    told(str(error))
    leave(error)
    sys.exit(code)


def stopped(number: int, frame: FrameType | None) -> NoReturn:
    """End on a signal while there is nothing to save: before the first step."""
    name = signal.Signals(number).name
    print(f"{name}: stopped; the same command starts again", file=sys.stderr)
    sys.exit(STOPPED)


def told(error: str) -> int:
    """Say what is wrong in one paragraph; return the exit code of user errors."""
    print(f"error: {error}", file=sys.stderr)
    return USER_ERROR


def parse(argv: list[str]) -> list[str]:
    """Parse the flags; an unknown key ends with one line that names the near ones."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        keys = flat(base().to_dict())
        sys.exit(told(mistyped(argv, keys) or str(error)))


if __name__ == "__main__":
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, stopped)
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse)
