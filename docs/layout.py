# SPDX-License-Identifier: Apache-2.0
"""What the site consists of: MkDocs calls this, as mkdocs.yml says.

The site is laid out as the repository is, so that a link means the same in both. It
has the pages of docs/ and of the top, whatever these lead to, a page made from the
notebook, and one made from the docstrings of each room.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
HOME = "README.md"
NOTEBOOK = "docs/quickstart.ipynb"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"")


def links(text: str) -> Iterator[str]:
    """Yield where a page leads to, apart from addresses of the web."""
    for one, other in LINK.findall(FENCE.sub("", text)):
        if not (one or other).startswith("https://"):
            yield one or other


def anchor(heading: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return set(map(anchor, headings))


def published() -> list[str]:
    """Return the files of the site: the pages, and what their links lead to."""
    found: set[Path] = set()
    new = {ROOT / HOME, *(ROOT / "docs").glob("*.md"), ROOT / NOTEBOOK}
    while new:
        found |= new
        new = {there for page in new for there in led_to(page)} - found
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def led_to(page: Path) -> Iterator[Path]:
    """Yield the files that a page has links to."""
    if page.suffix == ".md":
        for target in links(page.read_text()):
            there = (page.parent / target.partition("#")[0]).resolve()
            if there.is_file():
                yield there


def made() -> dict[str, str]:
    """Return the Markdown of the pages that are no files, by place in the site."""
    pages = {page: f"::: {name}\n" for name, page in reference().items()}
    notebook = json.loads((ROOT / NOTEBOOK).read_text())
    return pages | {NOTEBOOK.replace(".ipynb", ".md"): as_markdown(notebook)}


def reference() -> dict[str, str]:
    """Return the page of each room, by the name of its package or module."""
    inside = (ROOT / "fmfa_jax").iterdir()
    rooms = [f"fmfa_jax.{path.stem}" for path in inside if path.name[0] != "_"]
    return {name: f"api/{name}.md" for name in ("data_pipeline", *sorted(rooms))}


def as_markdown(notebook: Mapping[str, Any]) -> str:
    """Return a notebook's cells as a page: prose, and code in fences."""
    cells = [
        text if kind == "markdown" else f"```python\n{text}\n```"
        for kind, text in cells_of(notebook)
    ]
    head, *rest = cells
    here = f"[This page is a notebook.]({Path(NOTEBOOK).name})"
    return "\n\n".join([head, here, *rest]) + "\n"


def cells_of(notebook: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the kind of each cell and its text."""
    for cell in notebook["cells"]:
        yield cell["cell_type"], "".join(cell["source"])


def on_config(config: Any) -> None:
    """Give headings GitHub's anchors, and the pages of the rooms their place."""
    config.mdx_configs["toc"]["slugify"] = lambda text, _: anchor(text)
    rooms = [{name: page} for name, page in reference().items()]
    config.nav.append({"API": rooms})


def on_files(files: Any, config: Any) -> None:
    """Put the files of the repository in place of those of docs/."""
    from mkdocs.structure.files import File  # the site alone needs it

    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    for place in published():
        there = str(ROOT / place)
        files.append(File.generated(config, place, abs_src_path=there))
    for place, text in made().items():
        files.append(File.generated(config, place, content=text))
