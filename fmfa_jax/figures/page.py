# SPDX-License-Identifier: Apache-2.0
"""The report of a run as one HTML page, which needs no other file and no network."""

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from data_pipeline.hints import printable
from data_pipeline.regular import read_json, read_regular
from fmfa_jax import files

PAGE = "report.html"
LISTED = 20
"""Pictures that could not be read, and parameters, that are named one by one."""

_LARGEST_PICTURE = 16 << 20
# Nothing but what the page itself holds is shown, and nothing runs.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #000; background: #fff;
       margin: 0 auto; padding: 1rem; max-width: 110rem; }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr));
       gap: 2rem; }
article { min-width: 0; }
h1, h2, h3 { line-height: 1.2; overflow-wrap: anywhere; }
pre { overflow-x: auto; border: 1px solid #999; padding: .5rem; font-size: .85rem; }
img { max-width: 100%; height: auto; border: 1px solid #ccc; }
figure { margin: 0 0 1rem; }
table { border-collapse: collapse; }
th, td { text-align: left; vertical-align: top; padding: .1rem .8rem .1rem 0;
         overflow-wrap: anywhere; }
summary { cursor: pointer; }
"""
# In this order; others follow.
_PICTURES = {
    "ranking": "Caption {} and its nearest images",
    "worst": "The captions whose person is ranked last",
    "similarities": "Cosines of matching and of other pairs",
    "features": "Images and captions of a few people, in the plane",
    "words": "What the words of a caption relate to",
}


def write_page(runs: Sequence[str | Path], path: str | Path | None = None) -> Path:
    """Write the report of a run, or of several side by side.

    Holds what lies in the run folders: tables, curves, pictures, what was left out,
    config and environment. What a run lacks is left out or said to be missing.

    Args:
        runs: Run folders.
        path: The page; by default report.html in the first of them.

    Raises:
        OSError: A run has no config.json, or a file cannot be read.
        ValueError: A file is damaged.
    """
    folders = [Path(run) for run in runs]
    configs = [_object(folder / "config.json") for folder in folders]
    titles = [_title(each) for each in configs]
    articles = [
        _article(folder, config)
        for folder, config in zip(folders, configs, strict=True)
    ]
    body = "".join([_differences(folders, configs), "<main>", *articles, "</main>"])
    target = folders[0] / PAGE if path is None else Path(path)
    files.write_text(target, _document(" | ".join(dict.fromkeys(titles)), body))
    return target


def _document(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{_text(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def _article(folder: Path, config: dict[str, Any]) -> str:
    """One run."""
    parts = [f"<h2>{_text(_name(folder))}</h2>"]
    sections: dict[str, Callable[[Path], Iterator[str]]] = {
        "Figures": _tables,
        "Curves": _curves,
        "Pictures": _pictures,
        "What was left out": _left_out,
    }
    for heading, found in sections.items():
        inside = "".join(found(folder)) or "<p>None.</p>"
        parts.append(f"<section><h3>{heading}</h3>{inside}</section>")
    parts.append(_folded("Config", _keys(config)))
    if (file := folder / "environment.json").is_file():
        shown = json.dumps(_object(file), indent=2, ensure_ascii=False)
        parts.append(_folded("Environment", f"<pre>{_text(shown)}</pre>"))
    return f"<article>{''.join(parts)}</article>\n"


def _title(config: dict[str, Any]) -> str:
    method, data = (config.get(key, "?") for key in ("method", "data.name"))
    return f"{config.get('name', 'a run')}: {method} on {data}"


def _name(folder: Path) -> str:
    """The run's folder, by its name alone: the page may travel."""
    return folder.resolve().name


def _differences(folders: Sequence[Path], configs: Sequence[dict[str, Any]]) -> str:
    """The keys in which several runs differ."""
    if len(configs) < 2:
        return ""
    keys = sorted(set().union(*configs))
    shown = [[json.dumps(each.get(key)) for each in configs] for key in keys]
    rows = [
        [key, *values]
        for key, values in zip(keys, shown, strict=True)
        if len(set(values)) > 1
    ]
    header = ["", *map(_name, folders)]
    inside = _table([header, *rows]) if rows else "<p>Nowhere.</p>"
    return f"<h2>Where their configs differ</h2>{inside}"


def _tables(folder: Path) -> Iterator[str]:
    """The test tables and those of protocols, and validation's newest."""
    found = {file.parent.name: file for file in folder.glob("eval/*/table.md")}
    chosen = [name for name in found if _step(name) is not None and "-" in name]
    newest = max(chosen, key=_step, default="")
    for name in sorted(found, key=lambda name: (_step(name) or -1, name)):
        if name in chosen and name != newest:
            continue
        text = read_regular(found[name]).decode(errors="replace")
        yield f"<pre>{_text(text)}</pre>"


def _step(name: str) -> int | None:
    """The step of a report's folder, such as 1125 or 1125-val; None of a protocol's."""
    number = name.partition("-")[0]
    return int(number) if number.isdecimal() and number.isascii() else None


def _curves(folder: Path) -> Iterator[str]:
    if (file := folder / "curves.png").is_file():
        yield _picture(file, "Losses, learning rate, R1 and mAP by epoch")


def _pictures(folder: Path) -> Iterator[str]:
    """Those of the newest evaluation, and what `figures` drew since."""
    drawn = {path.parent for path in folder.glob("eval/*/*.png")}
    steps = {step: path for path in drawn if (step := _step(path.name)) is not None}
    newest = [steps[max(steps)]] if steps else []
    for place in (*newest, folder / "figures"):
        for file in sorted(place.glob("*.png"), key=_order):
            kind, _, number = file.stem.partition("_")
            words = _PICTURES.get(kind, kind).format(number.lstrip("0") or "0")
            yield _picture(file, words)


def _order(file: Path) -> tuple[int, str]:
    kinds, kind = list(_PICTURES), file.stem.partition("_")[0]
    return (kinds.index(kind) if kind in kinds else len(kinds)), file.name


def _left_out(folder: Path) -> Iterator[str]:
    """Bad pictures, oddities of the data, and parameters that no file gave."""
    if (file := folder / "bad_images.tsv").is_file():
        text = read_regular(file).decode(errors="replace")
        rows = [line.split("\t") for line in text.splitlines()[1:]]
        yield f"<p>{len(rows)} pictures could not be read.</p>"
        yield _table(rows[:LISTED])
    if (file := folder / "data.json").is_file():
        found = _json(file, list)
        texts = [each.get("text", "") for each in found if isinstance(each, dict)]
        yield "".join(f"<p>{_text(str(text))}</p>" for text in texts)
    if (file := folder / "init.json").is_file():
        yield from _loaded(_object(file))


def _loaded(report: dict[str, Any]) -> Iterator[str]:
    """What a weight file did not give, and what of it was not taken."""
    yield f"<p>First weights: {_text(str(report.get('source', '?')))}</p>"
    for key, words in {
        "ignored": "not taken from it",
        "newly_initialised": "drawn at random",
    }.items():
        names = [str(name) for name in report.get(key) or []]
        if names:
            more = f", and {len(names) - LISTED} more" * (len(names) > LISTED)
            listed = ", ".join(names[:LISTED]) + more
            yield f"<p>{len(names)} tensors {words}: {_text(listed)}</p>"


def _picture(file: Path, words: str) -> str:
    """A PNG inside the page; what is none is said, not shown."""
    encoded = read_regular(file, largest=_LARGEST_PICTURE)
    if not encoded.startswith(b"\x89PNG"):
        return f"<p>{_text(file.name)} is no PNG and is not shown.</p>"
    data = base64.b64encode(encoded).decode()
    image = f'<img src="data:image/png;base64,{data}" alt="{_text(words)}">'
    return f"<figure>{image}<figcaption>{_text(words)}</figcaption></figure>\n"


def _keys(config: dict[str, Any]) -> str:
    return _table([[key, json.dumps(config[key])] for key in sorted(config)])


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [
        "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    ]
    return f"<table>{''.join(lines)}</table>" if lines else ""


def _folded(heading: str, inside: str) -> str:
    return f"<details><summary>{heading}</summary>{inside}</details>"


def _text(words: str) -> str:
    """Words for the page, in which nothing is markup and nothing is invisible."""
    return "\n".join(escape(printable(line)) for line in words.split("\n"))


def _object(file: Path) -> dict[str, Any]:
    return _json(file, dict)


def _json(file: Path, kind: type) -> Any:
    """What a JSON file of the run holds, which is a dict or a list."""
    try:
        found = read_json(file)
    except ValueError as error:
        raise ValueError(f"{file}: wanted a JSON file, got: {error}") from error
    if not isinstance(found, kind):
        raise ValueError(f"{file}: wanted a JSON {kind.__name__}")
    return found
