# SPDX-License-Identifier: Apache-2.0
"""List the licences of all that the lock files install, as docs/licences.md.

    python docs/licences.py > docs/licences.md

Names and licences are what the installed packages say of themselves.
"""

import re
from collections.abc import Iterator, Mapping
from importlib.metadata import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCKS = {
    "What the product runs on": ("requirements.lock",),
    "What exports to ONNX need besides": ("requirements-onnx.txt",),
    "What only tests and benchmarks use": (
        "requirements-dev.lock",
        "requirements-torch.txt",
    ),
}
PINNED = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)", re.MULTILINE)
# Installed on other systems, or other processors, than this list was made on, or where
# other packages need it: stated here, so that the list is the same everywhere.
ELSEWHERE = {
    "colorama": "BSD-3-Clause",
    "httpx2-jsfetch": "BSD-3-Clause",
    "nest-asyncio": "BSD-2-Clause",
    "tensorflow": "Apache-2.0",
}
# Whose metadata says nothing; their licence files or READMEs do.
SILENT = {"jax2onnx": "Apache-2.0", "namex": "Apache-2.0", "simple-parsing": "MIT"}
LONGEST = 60
"""Longer texts in a licence field are the licence itself."""


def pinned(text: str) -> dict[str, str]:
    """Package -> its versions, for different Pythons, in a lock file."""
    found: dict[str, list[str]] = {}
    for name, version in PINNED.findall(text):
        found.setdefault(name, []).append(version)
    return {name: ", ".join(versions) for name, versions in found.items()}


def licence(name: str) -> str:
    """The licence of a package, as an SPDX expression where it gives one."""
    if name in ELSEWHERE:
        return ELSEWHERE[name]
    told = metadata(name)
    said = [told.get("License-Expression") or "", _short(told.get("License") or "")]
    said += [*classified(told.get_all("Classifier")), SILENT.get(name, "not stated")]
    return next(filter(None, said))


def _short(text: str) -> str:
    """The text of a licence field, unless it is the licence itself."""
    return "" if len(text) > LONGEST or text == "UNKNOWN" else text


def classified(classifiers: list[str] | None) -> Iterator[str]:
    """The licences among a package's classifiers, in one text."""
    own = [each for each in classifiers or [] if each.startswith("License ::")]
    if names := [each.split(" :: ")[-1] for each in own]:
        yield " and ".join(names)


def page(texts: Mapping[str, str]) -> str:
    """The page; takes the text of each lock file by its name."""
    lines = []
    seen: set[str] = set()
    for title, files in LOCKS.items():
        found = {k: v for file in files for k, v in pinned(texts[file]).items()}
        lines += ["", f"## {title}", "", "| package | version | licence |"]
        lines += ["| --- | --- | --- |"]
        for name in sorted(found.keys() - seen):
            lines.append(f"| {name} | {found[name]} | {licence(name)} |")
        seen |= found.keys()
    return HEAD + "\n".join(lines) + "\n"


HEAD = """# Licences

This project is licensed under [Apache-2.0](../LICENSE). It ships no code of others;
`make` installs these packages, each under its own licence, as its metadata names it. A
package stands where it is needed first. `python docs/licences.py` makes this page from
the lock files, and a test holds the two together. What `make docs` builds the site with
(requirements-docs.txt) is no part of what runs, and not listed.
"""

if __name__ == "__main__":
    files = [file for group in LOCKS.values() for file in group]
    print(page({file: (ROOT / file).read_text() for file in files}), end="")
