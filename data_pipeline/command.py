# SPDX-License-Identifier: Apache-2.0
"""What all command lines share: the paths they take, and what they say.

A program says its own lines and nothing else: libraries are silent, unless
`--verbosity=1` asks for them and for the traceback of an error.
"""

import argparse
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from absl import logging as absl_logging

from data_pipeline.buckets import PACKAGES, readable, scheme
from data_pipeline.copies import near
from data_pipeline.delivery import Target
from data_pipeline.hints import printable

OWN = ("configs", "data_pipeline", "fmfa_jax")
"""Packages whose warnings are lines of the program."""

USER_ERROR = 2
INTERRUPTED = 130
"""Exit codes."""


def local(path: str, *, what: str) -> str:
    """Return a path on a mounted disk with its ~ expanded; "" stays "".

    Args:
        path: As the user wrote it.
        what: Flag or key that it is the value of.

    Raises:
        ValueError: It is a URL, which would become a folder of that name, or begins
            with the ~ of a user that does not exist.
    """
    scheme, separator, _ = path.partition("://")
    if separator:
        way = f"mount the {scheme}:// address or copy its files"
        way = f"leave out {scheme}://" if scheme == "file" else way
        raise ValueError(
            f"{what}: wanted a path on a mounted disk, got {printable(path[:500])!r}; "
            f"{way}"
        )
    expanded = os.path.expanduser(path)
    if path.startswith("~") and expanded == path and not os.path.exists(path):
        user = printable(path.split("/")[0][:100])
        raise ValueError(
            f"{what}: wanted a path, got {printable(path[:500])!r}, but there is no "
            f"home folder of {user}; write ./{user} for a name that begins with ~"
        )
    return expanded


class Stored(str):
    """A URL that is to be read; `Parser` puts a local copy in its place."""


def found(path: str, *, what: str) -> str:
    """Return a path that is read, see `local`, or the URL of an object or folder.

    Raises:
        ValueError: It is neither.
    """
    if (kind := scheme(path)) and kind in readable() and path.split("/")[2]:
        return Stored(path)
    return local(path, what=what)


def kept(path: str, *, what: str) -> str:
    """Return a path, see `local`, or the URL of a folder that can be written to.

    Raises:
        ValueError: It is neither.
    """
    if scheme(path) in PACKAGES and path.count("/") > 2 and path.split("/")[2]:
        return path
    return local(path, what=what)


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, with --verbosity.

    Of its arguments, `source` is the type of what is read, which may lie in a store,
    `target` of what is written in one go, which may be put there, and `path` of all
    other paths.
    """

    def __init__(self, *, module: str = "", **options: Any) -> None:
        """As `argparse.ArgumentParser`.

        Args:
            module: What `python -m` takes, for a whole command line. In the program's
                name, and in examples of the description, it becomes what was called.
            options: Those of `argparse.ArgumentParser`.
        """
        if module:
            long = f"python -m {module}"
            options["prog"] = called(long)
            options["description"] = options["description"].replace(long, called(long))
        super().__init__(**options)
        # Suppressed: a subcommand's default would replace what stands before it.
        self.add_argument(
            "--verbosity",
            type=int,
            default=argparse.SUPPRESS,
            metavar="N",
            help="1: also what libraries say, and the traceback of an error",
        )

    def parse_args(self, *given: Any, **more: Any) -> Any:
        """Parse; what lies in a store is copied once all arguments are right."""
        args = super().parse_args(*given, **more)
        try:
            for name, value in vars(args).items():
                setattr(args, name, _copied(value, what=name))
        except OSError as error:
            self.error(str(error))
        return args

    def error(self, message: str) -> NoReturn:
        """End the program; --help tells the rest."""
        say(f"error: {printable(message)}; see {self.prog} --help", sys.stderr)
        sys.exit(USER_ERROR)


def called(long: str) -> str:
    """How this program was called: `fmfa NAME` (fmfa_jax/__main__.py), or `long`."""
    return sys.argv[0] if sys.argv[0].startswith("fmfa ") else long


def path(text: str) -> str:
    """The type of an argument that is a path; see `local`."""
    return _argument(local, text)


def source(text: str) -> str:
    """The type of an argument that is read; see `found`."""
    return _argument(found, text)


def target(text: str) -> str:
    """The type of an argument that is written; see `kept` and `delivery.delivered`."""
    taken = _argument(kept, text)
    return Target(taken) if scheme(taken) else taken


def _argument(take: Callable[..., str], text: str) -> str:
    """A path as `take` lets it pass; argparse names the argument itself."""
    try:
        return take(text, what="a path")
    except ValueError as error:
        message = str(error).removeprefix("a path: ")
        raise argparse.ArgumentTypeError(message) from error


def _copied(value: Any, *, what: str) -> Any:
    if isinstance(value, list):
        return [_copied(each, what=what) for each in value]
    return near(value, what=what) if isinstance(value, Stored) else value


def say(text: object, stream: Any = None) -> None:
    """Print a text, which may hold names from files, so that it only fills lines.

    Args:
        text: Anything but line ends that a terminal might obey is escaped.
        stream: Where to; standard output by default.
    """
    lines = "\n".join(map(printable, str(text).split("\n")))
    print(lines, file=stream, flush=True)


def told(error: BaseException, *, verbosity: int = 0) -> int:
    """Say on standard error what is wrong, in one paragraph.

    Args:
        error: What is wrong.
        verbosity: Above 0 the traceback of what is being handled comes first.

    Returns:
        The exit code of user errors.
    """
    if verbosity > 0:
        traceback.print_exc()
    say(f"error: {error}", sys.stderr)
    return USER_ERROR


def told_of(arguments: argparse.Namespace, error: BaseException) -> int:
    """As `told`, for arguments of a `Parser`."""
    return told(error, verbosity=verbosity(arguments))


def verbosity(arguments: argparse.Namespace) -> int:
    """How much is to be said, of arguments of a `Parser`."""
    return getattr(arguments, "verbosity", 0)


class _Lines(logging.Handler):
    """Writes records as lines of the program, in place of an open line of progress."""

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        clear = "\r\033[K" if sys.stderr.isatty() else ""
        print(end=clear, file=sys.stderr)
        say(f"{record.levelname.lower()}: {record.getMessage()}", sys.stderr)


def speak(*, verbosity: int = 0) -> None:
    """Let this process say its program's own lines only.

    Call it before libraries are imported that look at the environment.

    Args:
        verbosity: Above 0 nothing is held back.
    """
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # as data_pipeline.prefetch
    for name in OWN:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [_Lines()], False
        logger.setLevel(logging.INFO if verbosity > 0 else logging.WARNING)
    if verbosity > 0:
        return
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":  # which JAX sets itself
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax tells of every file it opens
    for name in ("", "tensorflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def run(main: Callable[[list[str]], int]) -> NoReturn:
    """Run a command line's `main` as the program that this process is."""
    arguments = sys.argv[1:]
    # Before they are parsed: what is imported for that would speak.
    speak(verbosity=sum(each.startswith("--verbosity") for each in arguments))
    try:
        sys.exit(main(arguments))
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
