# SPDX-License-Identifier: Apache-2.0
"""Find people by sentence in a gallery.

python -m fmfa_jax.search index GALLERY --model runs/demo --out people.index
python -m fmfa_jax.search query people.index "a man in a red jacket" --sheet found.png
python -m fmfa_jax.search add people.index
python -m fmfa_jax.search remove people.index camera_7/
python -m fmfa_jax.search serve people.index
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from PIL import Image

from data_pipeline.command import Parser, path, run, say, told_of
from data_pipeline.hints import printable
from data_pipeline.images import ImageError
from data_pipeline.regular import read_regular
from fmfa_jax.figures.rankings import save
from fmfa_jax.search import index, store
from fmfa_jax.search.encoder import open_model, reopen_model
from fmfa_jax.search.query import contact_sheet, open_searcher
from fmfa_jax.search.store import SearchError
from fmfa_jax.weights import WeightsError
from fmfa_jax.weights.arguments import add_model_arguments, positive, stated

PASSWORD = "FMFA_SEARCH_PASSWORD"
_SHOWN_BAD = 10


class ProgressLine:
    """A line on standard error, drawn over itself; in a log, one every 30 seconds."""

    def __init__(self) -> None:
        self._start: tuple[float, int] | None = None
        self._last = 0.0

    def __call__(self, done: int, wanted: int, bad: int) -> None:
        """Show how far it is; see `index.Progress`."""
        now, live = time.monotonic(), sys.stderr.isatty()
        if self._start is None:
            self._start = now, done
        early = done < wanted and now - self._last < (0.2 if live else 30)
        if early or not wanted:
            return
        self._last = now
        rate = (done - self._start[1]) / max(now - self._start[0], 1e-9)
        line = f"{done}/{wanted} pictures, {bad} bad"
        if rate:
            line += f", {rate:.1f}/s"
            left = timedelta(seconds=int((wanted - done) / rate))
            line += f", {left} left" * (done < wanted)
        print(f"\r{line}\033[K" if live else line, end="", file=sys.stderr, flush=True)
        if done >= wanted or not live:
            print(file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 for success, 2 for an error, which is printed in one line, and 130 after an
        interruption.
    """
    args = _parser().parse_args(arguments)
    try:
        args.run(args)
    except (SearchError, WeightsError, ImageError, OSError, ValueError) as error:
        return told_of(args, error)
    return 0


def _index(args: argparse.Namespace) -> None:
    model = open_model(args.model, tokenizer=args.tokenizer, **stated(args))
    report = model.model.report
    if report.assumes:
        say(f"activation: {report.activation}", sys.stderr)
    kept = _picked(args, "storage", "engine", "batch_size", "save_every")
    line = ProgressLine()
    change = index.index_gallery(args.gallery, args.out, model, progress=line, **kept)
    _report(args.out, change)


def _add(args: argparse.Namespace) -> None:
    folder, paths = Path(args.index).resolve(), _given(args.paths)
    model = reopen_model(folder, store.read_record(folder), args.model)
    pace, line = _picked(args, "batch_size", "save_every"), ProgressLine()
    _report(args.index, index.add(folder, model, paths, progress=line, **pace))


def _remove(args: argparse.Namespace) -> None:
    if bool(args.paths) == args.missing:
        raise SearchError("wanted either files and folders to remove, or --missing")
    _report(args.index, index.remove(args.index, _given(args.paths), model=args.model))


def _query(args: argparse.Namespace) -> None:
    if args.sheet:
        _check_sheet(Path(args.sheet))
    searcher = open_searcher(args.index, model=args.model)
    picture = read_regular(args.image) if args.image else b""
    found = searcher.search(searcher.vector(args.sentence, picture), args.top)
    results = [
        {"rank": rank, "similarity": cosine, "file": searcher.gallery.file(row)}
        for rank, row, cosine in found.hits()
    ]
    if args.json:
        asked = _picked(args, "sentence", "image")
        print(json.dumps({**asked, "results": results}, indent=1))
    else:
        print("rank  similarity  file")
        for hit in results:
            print(
                "{rank:4d}  {similarity:10.4f}  ".format(**hit) + printable(hit["file"])
            )
    if args.sheet:
        caption = args.sentence or f"like {Path(args.image).name}"
        save(contact_sheet(searcher, found, caption), args.sheet)
        say(f"wrote {args.sheet}", sys.stderr)


def _check_sheet(path: Path) -> None:
    """Refuse a picture that could not be written, before the search and not after."""
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise SearchError(f"--sheet {path}: wanted a name that ends in .png or .jpg")
    if not path.parent.is_dir():
        raise SearchError(f"--sheet {path}: there is no folder {path.parent}")


def _serve(args: argparse.Namespace) -> None:
    try:
        from fmfa_jax.search.server import SearchServer
    except ModuleNotFoundError as error:
        raise SearchError(
            f"the page needs {error.name}, which is not installed: pip install "
            "starlette uvicorn"
        ) from error
    from fmfa_jax.search.service import Service

    if args.key and not args.certificate:
        raise SearchError("--ssl-keyfile is the key of a certificate: --ssl-certfile")
    searcher = open_searcher(args.index, model=args.model)
    # Compile what the first search would wait for.
    searcher.search(searcher.vector("a person"), 1)
    searcher.explain("a person", 0)
    password = args.password or os.environ.get(PASSWORD, "")
    server = SearchServer(
        Service(searcher),
        password=password,
        **_picked(args, "host", "port", "names", "root_path", "certificate", "key"),
    )
    if not server.loopback:
        note = "note: other machines can reach this page"
        note += "" if password else ", WITHOUT a password (--password)"
        note += "" if args.certificate else "; what they send is not encrypted"
        print(note, file=sys.stderr)
    print(f"{len(searcher.gallery)} pictures at {server.url} (Ctrl-C ends)", flush=True)
    server.run()


def _picked(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: getattr(args, name) for name in names}


def _given(paths: Sequence[str]) -> list[str]:
    """Take paths that exist as they are, and others as relative to the gallery."""
    return [str(Path(p).absolute()) if Path(p).exists() else p for p in paths]


def _report(folder: str, change: index.Change) -> None:
    """Print what a command did, with everything that was left out."""
    pictures = _count(change.rows, "picture")
    say(f"{folder}: {pictures} ({change.added} added, {change.removed} removed)")
    if change.others:
        print(f"left alone, not pictures by name: {_count(change.others, 'file')}")
    if change.excluded:
        excluded = _count(change.excluded, "picture")
        print(f"left out, because removed before: {excluded}; `add` them by name")
    if change.gone:
        gone = _count(change.gone, "picture")
        print(f"no longer on the disk: {gone}; `remove --missing` takes them out")
    if change.bad:
        bad = _count(len(change.bad), "file")
        say(f"unusable: {bad}, listed in {Path(folder) / store.BAD_LIST}")
    for bad in change.met[:_SHOWN_BAD]:
        print(f"  {printable(bad.file)}: {printable(bad.reason)}")
    if len(change.met) > _SHOWN_BAD:
        print(f"  and {len(change.met) - _SHOWN_BAD} more")
    if change.faiss:
        recall, probes = change.faiss.recall, _count(change.faiss.probes, "cell")
        print(f"FAISS: recall@10 against exact search {recall:.4f} ", end="")
        print(f"(the worse of sentences and pictures), visiting {probes}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m fmfa_jax.search",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        return made

    make = command("index", _index, "embed a folder; run again to continue or update")
    grow = command("add", _add, "embed the gallery's new and changed pictures")
    shrink = command("remove", _remove, "take pictures out; their files stay")
    ask = command("query", _query, "print the nearest pictures")
    serve = command("serve", _serve, "open the web page")
    _index_options(make)
    for each in (grow, shrink, ask, serve):
        each.add_argument("index", type=path, help="folder of the index")
        each.add_argument("--model", type=path, help="where the index's model lies now")
    lost = {"metavar": "N", "help": "most pictures that a killed process loses"}
    for each in (make, grow):
        each.add_argument("--batch-size", type=positive, default=64)
        each.add_argument("--save-every", type=positive, default=1024, **lost)
    missing = "what is no longer on the disk"
    grow.add_argument(
        "paths", nargs="*", type=path, help="files and folders; none: all"
    )
    shrink.add_argument(
        "paths", nargs="*", type=path, help="files and folders of the gallery"
    )
    shrink.add_argument("--missing", action="store_true", help=missing)
    ask.add_argument("sentence", nargs="?", default="")
    ask.add_argument(
        "--image", type=path, help="an example picture, alone or with the sentence"
    )
    ask.add_argument("--top", type=positive, default=10)
    ask.add_argument("--json", action="store_true")
    ask.add_argument("--sheet", type=path, help="picture file to draw the results to")
    _serve_options(serve)
    return parser


def _index_options(make: argparse.ArgumentParser) -> None:
    make.add_argument(
        "gallery", type=path, help="folder of pictures, subfolders included"
    )
    make.add_argument(
        "--model", type=path, required=True, help="run folder or weight file"
    )
    make.add_argument("--out", type=path, required=True, help="folder of the index")
    make.add_argument(
        "--tokenizer", type=path, help='"clip" or a folder; default: the run\'s'
    )
    make.add_argument("--storage", choices=store.STORAGES, default="float32")
    make.add_argument("--engine", choices=store.ENGINES, default="exact")
    add_model_arguments(make)


def _serve_options(serve: argparse.ArgumentParser) -> None:
    password = f"asked for by the page; safer in ${PASSWORD}"
    names = "name by which browsers reach a reverse proxy in front; may be repeated"
    root = "path below which a reverse proxy serves the page, like /people"
    hosts = {"dest": "names", "action": "append", "default": [], "metavar": "NAME"}
    certificate = {"dest": "certificate", "help": "certificate that turns on TLS"}
    key = {"dest": "key", "help": "its key, if in another file"}
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=7860)
    serve.add_argument("--password", default="", help=password)
    serve.add_argument("--allow-host", help=names, **hosts)
    serve.add_argument("--root-path", default="", metavar="PATH", help=root)
    serve.add_argument("--ssl-certfile", type=path, metavar="PEM", **certificate)
    serve.add_argument("--ssl-keyfile", type=path, metavar="PEM", **key)


if __name__ == "__main__":
    run(main)
