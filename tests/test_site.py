# SPDX-License-Identifier: Apache-2.0
"""The site shows every page, reads as GitHub does, and builds where MkDocs is there.

What the pages link to is checked in tests/test_readme.py.
"""

import importlib.util
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import markdown
import pytest
import yaml
from markdown_it import MarkdownIt

from docs import layout

ROOT = Path(__file__).parents[1]
SETTINGS = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
MKDOCS = importlib.util.find_spec("mkdocs") is not None
PAGES = [place for place in layout.published() if place.endswith(".md")]


def leaves(nav: list | dict | str) -> Iterator[str]:
    """Yield the pages that a navigation leads to."""
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from leaves(part)


def test_the_navigation_has_every_page_once_and_no_other():
    found = list(leaves(SETTINGS["nav"]))
    notebook = layout.NOTEBOOK.replace(".ipynb", ".md")
    assert sorted(found) == sorted([*PAGES, notebook])
    assert notebook in layout.made()


def test_the_site_has_what_its_pages_lead_to():
    found = set(layout.published())
    assert {"docs/images/search.png", "configs/base.py", "SECURITY.md"} <= found
    assert not [place for place in found if not (ROOT / place).is_file()]


def test_each_room_has_a_page_of_the_reference():
    pages = layout.made()
    assert {"data_pipeline", "fmfa_jax.losses", "fmfa_jax.files"} <= {
        *layout.reference()
    }
    for name, page in layout.reference().items():
        there = ROOT / name.replace(".", "/")
        assert there.is_dir() or there.with_suffix(".py").is_file()
        assert pages[page] == f"::: {name}\n"


def test_the_anchors_are_those_of_github():
    """Those of a heading with marks, whose neighbouring blanks both count."""
    assert layout.anchors("# A `b_c`: d, E-f / g?\n") == {"a-b_c-d-e-f--g"}
    assert layout.anchors("```bash\n# no heading\n```\n") == set()


def test_a_notebook_becomes_a_page():
    kinds = (("markdown", ["# T\n", "see"]), ("code", ["a = 1\n", "a"]))
    cells = [{"cell_type": kind, "source": lines} for kind, lines in kinds]
    page = layout.as_markdown({"cells": cells})
    assert page.startswith("# T\nsee\n\n[")
    assert page.endswith("\n\n```python\na = 1\na\n```\n")


def shape(html: str) -> Counter[str]:
    """How often each kind of element stands in a page."""
    kinds = r"h\d|li|ul|ol|table|tr|td|th|pre|a|img|em|strong"
    return Counter(re.findall(rf"<({kinds})\b", html))


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_the_same_parts_on_the_site_as_on_github(page):
    """MkDocs' Markdown wants, for instance, an empty line before a list."""
    text = (ROOT / page).read_text()
    ours = markdown.markdown(text, extensions=["tables", "fenced_code"])
    assert shape(ours) == shape(MarkdownIt("gfm-like", {"linkify": False}).render(text))


@pytest.mark.skipif(not MKDOCS, reason="MkDocs is not installed: `make docs`")
def test_the_site_builds_without_a_warning(tmp_path):
    words = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    losses = (tmp_path / "api" / "fmfa_jax.losses.html").read_text()
    assert 'id="fmfa_jax.losses.alignment.efa"' in losses
    training = (tmp_path / "docs" / "training.html").read_text()
    assert 'href="../index.html#train-on-real-data"' in training
