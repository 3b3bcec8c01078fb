# SPDX-License-Identifier: Apache-2.0
"""The keys of a config with their comments, for --help. Nothing here imports JAX."""

import ast
import io
import tokenize
from collections.abc import Iterator, Mapping
from typing import Any

from fmfa_jax.options import flat

_COLUMN = 36
"""Where comments begin, unless a value is longer."""


def comments(source: str) -> dict[str, str]:
    """Dotted key, or section, -> its comment ("": none), in the order of the source.

    Args:
        source: A config file whose config is named `c`, as configs/base.py. A comment
            stands behind the value, and goes on in lines of its own below it.
    """
    found, alone = _comments_by_line(source)
    told = {}
    for node in ast.walk(ast.parse(source)):
        key = ast.unparse(node.targets[0]) if isinstance(node, ast.Assign) else ""
        if not key.startswith("c."):
            continue
        last = node.end_lineno
        while last + 1 in alone:
            last += 1
        lines = [found[n] for n in range(node.lineno, last + 1) if n in found]
        told[key.removeprefix("c.")] = " ".join(lines)
    return told


def _comments_by_line(source: str) -> tuple[dict[int, str], set[int]]:
    """The comment of each line that has one, and the lines that are nothing else."""
    found, alone = {}, set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            found[token.start[0]] = token.string.lstrip("# ")
            if not token.line[: token.start[1]].strip():
                alone.add(token.start[0])
    return found, alone


def described(config: Mapping[str, Any], told: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each key of a config: its value and its comment.

    Args:
        config: Section -> key -> value, nested.
        told: What `comments` found; its order is that of the lines.
    """
    values, order = flat(config), list(told)

    def place(key: str) -> tuple[int, ...]:
        names = (key.partition(".")[0], key)
        return tuple(order.index(x) if x in told else len(order) for x in names)

    heading = ""
    for key in sorted(values, key=place):
        section, dot, _ = key.partition(".")
        if dot and section != heading:
            heading = section
            yield _line(section, told.get(section, ""))
        yield _line(f"  {key} = {_shown(values[key])}", told.get(key, ""))


def _shown(value: Any) -> str:
    return repr(tuple(value) if isinstance(value, list) else value)


def _line(text: str, comment: str) -> str:
    return f"{text:{_COLUMN}}  {comment}".rstrip()
