# SPDX-License-Identifier: Apache-2.0
"""Error messages for mistyped names, and names that are safe to print."""

import difflib
from collections.abc import Iterable


def near(got: str, known: Iterable[str]) -> list[str]:
    """Return up to three of the known names that resemble a mistyped one."""
    return difflib.get_close_matches(got[:99].lower(), list(known), n=3, cutoff=0.5)


def unknown(what: str, got: str, known: Iterable[str]) -> str:
    """Return an error message for a name that does not exist.

    Args:
        what: Kind of name, such as "config.data.cache" or "loss".
        got: The unknown name.
        known: The names that exist: similar ones are suggested, and all are listed.
    """
    known = [str(each) for each in known]
    got = got if len(got) < 200 else f"{got[:200]}..."
    similar = near(got, known)
    hint = f"; did you mean {' or '.join(similar)}?" if similar else "."
    return f"{what}={got!r} is not known{hint} Possible: {', '.join(known) or 'none'}"


def printable(text: str) -> str:
    r"""Return a text from a file with everything escaped that a terminal might obey.

    Control characters, line ends, lone surrogates and marks that turn the direction of
    writing become \x1b, \n, \ud800, \u202e; letters of all scripts stay.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
