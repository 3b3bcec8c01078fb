# SPDX-License-Identifier: Apache-2.0
"""Train or evaluate a text-to-image person retriever.

    python main.py --config=configs/demo.py --workdir=runs/demo
    python main.py --config=configs/cuhk.py:plus --workdir=runs/cuhk
    python main.py --config=configs/cuhk.py --workdir=runs/cuhk --mode=eval

The same command resumes an interrupted run.
"""

import sys

from absl import app, flags
from ml_collections import config_flags

from configs.base import base
from data_pipeline.command import INTERRUPTED, USER_ERROR, local, say, speak, told
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


def main(argv: list[str]) -> None:
    """Flags -> config -> one call."""
    if len(argv) > 1:
        raise app.UsageError(f"wanted only --flags, got {argv[1:]}")
    speak(verbosity=verbosity())
    config = CONFIG.value
    set_flags(deterministic=config.run.deterministic)
    # Imported here: after the flags, and so that a mistyped one is answered at once.
    from data_pipeline.bad_images import TooManyBadImagesError
    from fmfa_jax.machines.lifecycle import leave
    from fmfa_jax.training import loop

    call = loop.train if MODE.value == "train" else loop.evaluate
    try:
        call(config, local(WORKDIR.value or f"runs/{config.name}", what="--workdir"))
    except (ValueError, OSError, FloatingPointError, TooManyBadImagesError) as error:
        code = told(error, verbosity=verbosity())
        leave(error)
        sys.exit(code)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


def verbosity() -> int:
    """The flag that absl defines; its default is for programs that log."""
    flag = flags.FLAGS["verbosity"]
    return flag.value if flag.present else 0


def parse(argv: list[str]) -> list[str]:
    """Parse the flags; an unknown key ends with one line that names the near ones."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        keys = flat(base().to_dict())
        say(f"error: {mistyped(argv, keys) or error}", sys.stderr)
        sys.exit(USER_ERROR)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse)
