# SPDX-License-Identifier: Apache-2.0
"""What to say when somebody mistypes a name."""

import difflib
from collections.abc import Iterable


def unknown(what: str, got: str, known: Iterable[str]) -> str:
    """An error text for a name that does not exist.

    Args:
        what: kind of name, such as "config.data.cache" or "loss".
        got: the name that came.
        known: the names that exist; the near ones are suggested, all are listed.
    """
    known = [str(each) for each in known]
    near = difflib.get_close_matches(got.lower(), known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    return f"{what}={got!r} is not known{hint} Possible: {', '.join(known)}"
