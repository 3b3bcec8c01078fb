# SPDX-License-Identifier: Apache-2.0
"""Find people by sentence in a gallery.

python -m fmfa_jax.search index GALLERY --model runs/demo --out people.index
python -m fmfa_jax.search query people.index "a man in a red jacket" --sheet found.png
python -m fmfa_jax.search add people.index
python -m fmfa_jax.search remove people.index camera_7/
python -m fmfa_jax.search serve people.index
python -m fmfa_jax.search verify people.index
"""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from data_pipeline.command import Parser, path, run, say, source, told_of
from data_pipeline.hints import printable
from data_pipeline.images import ImageError
from data_pipeline.regular import read_regular
from fmfa_jax.figures.rankings import save
from fmfa_jax.search import index, store
from fmfa_jax.search.encoder import open_model, reopen_model
from fmfa_jax.search.query import Searcher, contact_sheet, open_searcher
from fmfa_jax.search.store import IndexRecord, SearchError
from fmfa_jax.search.told import ProgressLine, count, report
from fmfa_jax.search.verify import verify
from fmfa_jax.weights import WeightsError
from fmfa_jax.weights.arguments import add_model_arguments, positive, stated

PASSWORD = "FMFA_SEARCH_PASSWORD"


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
    loaded = model.model.report
    if loaded.assumes:
        say(f"activation: {loaded.activation}", sys.stderr)
    kept = _picked(args, "storage", "engine", "batch_size", "save_every")
    kept |= {"follow_links": args.follow_links, "progress": ProgressLine()}
    report(args.out, index.index_gallery(args.gallery, args.out, model, **kept))


def _add(args: argparse.Namespace) -> None:
    folder, paths = Path(args.index).resolve(), _given(args.paths)
    model = reopen_model(folder, store.read_record(folder), args.model)
    kept = _picked(args, "batch_size", "save_every", "follow_links", "gallery")
    change = index.add(folder, model, paths, progress=ProgressLine(), **kept)
    report(args.index, change)


def _remove(args: argparse.Namespace) -> None:
    if bool(args.paths) == args.missing:
        raise SearchError("wanted either files and folders to remove, or --missing")
    if args.even_all and not args.missing:
        raise SearchError("--even-all belongs to --missing")
    kept = _picked(args, "model", "gallery", "even_all")
    change = index.remove(args.index, _given(args.paths), **kept)
    report(args.index, change, embedded=False)


def _verify(args: argparse.Namespace) -> None:
    record = verify(args.index)
    shards, pictures = count(len(record.shards), "shard"), count(record.rows, "picture")
    say(f"{args.index}: {shards} of {pictures}, all as they were written")
    _tell_undigested(record)


def _tell_undigested(record: IndexRecord) -> None:
    missing = [count(record.undigested, "shard")] * bool(record.undigested)
    missing += ["its tokenizer"] * (not record.tokenizer_sha256)
    if missing:
        note = f"note: the index has no SHA-256 of {' and '.join(missing)}"
        say(f"{note}; `add` notes what is missing", sys.stderr)


def _query(args: argparse.Namespace) -> None:
    if args.sheet:
        _check_sheet(Path(args.sheet))
    searcher = _open(args)
    picture = read_regular(args.image) if args.image else b""
    found = searcher.search(searcher.vector(args.sentence, picture), args.top)
    if words := searcher.cut(args.sentence):
        note = f"note: the model reads the first {count(words, 'word')} of the sentence"
        say(f"{note}; the rest was cut off", sys.stderr)
    gallery = searcher.gallery
    results = [
        {"rank": rank, "similarity": cosine, "file": gallery.file(row)}
        | {"there": gallery.there(row)}
        for rank, row, cosine in found.hits()
    ]
    if args.json:
        asked = _picked(args, "sentence", "image")
        print(json.dumps({**asked, "results": results}, indent=1))
    else:
        print("rank  similarity  file")
        for hit in results:
            row = "{rank:4d}  {similarity:10.4f}  ".format(**hit)
            lost = "" if hit["there"] else "  (no longer there)"
            print(row + printable(hit["file"]) + lost)
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
    if args.log_queries and not args.access_log:
        raise SearchError("--log-queries belongs to --access-log")
    searcher = _open(args)
    # Compile what the first search would wait for.
    searcher.search(searcher.vector("a person"), 1)
    with contextlib.suppress(SearchError):  # that picture may be lost
        searcher.explain("a person", 0)
    password = args.password or os.environ.get(PASSWORD, "")
    server = SearchServer(
        Service(searcher),
        password=password,
        **_picked(args, "host", "port", "names", "root_path", "certificate", "key"),
        **_picked(args, "access_log", "log_queries"),
    )
    if not server.loopback:
        note = "note: other machines can reach this page"
        note += "" if password else ", WITHOUT a password (--password)"
        note += "" if args.certificate else "; what they send is not encrypted"
        print(note, file=sys.stderr)
    print(f"{len(searcher.gallery)} pictures at {server.url} (Ctrl-C ends)", flush=True)
    server.run()


def _open(args: argparse.Namespace) -> Searcher:
    searcher = open_searcher(args.index, model=args.model, gallery=args.gallery)
    _tell_undigested(searcher.gallery.record)
    return searcher


def _picked(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: getattr(args, name) for name in names}


def _given(paths: Sequence[str]) -> list[str]:
    """Take paths that exist as they are, and others as relative to the gallery."""
    return [str(Path(p).absolute()) if Path(p).exists() else p for p in paths]


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
    sound = command("verify", _verify, "compare an index with its SHA-256 digests")
    _index_options(make)
    for each in (grow, shrink, ask, serve, sound):
        kind = path if each in (grow, shrink) else source  # which are written to
        each.add_argument("index", type=kind, help="folder of the index")
    for each in (grow, shrink, ask, serve):
        each.add_argument(
            "--model", type=source, help="where the index's model lies now"
        )
    place = "where the gallery lies now, if it has moved"
    for each, kept in ((grow, True), (shrink, True), (ask, False), (serve, False)):
        text = place + ("; noted in the index" if kept else "; for this call")
        each.add_argument("--gallery", type=source, help=text)
    links = "enter links to folders, where they stay inside the gallery"
    for each in (make, grow):
        each.add_argument("--follow-links", action="store_true", help=links)
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
    even = "with --missing: even if that is every picture of the index"
    shrink.add_argument("--even-all", action="store_true", help=even)
    ask.add_argument("sentence", nargs="?", default="")
    ask.add_argument(
        "--image", type=source, help="an example picture, alone or with the sentence"
    )
    ask.add_argument("--top", type=positive, default=10)
    ask.add_argument("--json", action="store_true")
    ask.add_argument("--sheet", type=path, help="picture file to draw the results to")
    _serve_options(serve)
    return parser


def _index_options(make: argparse.ArgumentParser) -> None:
    make.add_argument(
        "gallery", type=source, help="folder of pictures, subfolders included"
    )
    make.add_argument(
        "--model", type=source, required=True, help="run folder or weight file"
    )
    make.add_argument("--out", type=path, required=True, help="folder of the index")
    make.add_argument(
        "--tokenizer", type=source, help='"clip" or a folder; default: the run\'s'
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
    log = 'file that gets a JSON line for each answer, without queries; "-": stderr'
    serve.add_argument("--access-log", default="", type=path, metavar="FILE", help=log)
    query = "write what was searched for into the access log, too"
    serve.add_argument("--log-queries", action="store_true", help=query)
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=7860)
    serve.add_argument("--password", default="", help=password)
    serve.add_argument("--allow-host", help=names, **hosts)
    serve.add_argument("--root-path", default="", metavar="PATH", help=root)
    serve.add_argument("--ssl-certfile", type=path, metavar="PEM", **certificate)
    serve.add_argument("--ssl-keyfile", type=path, metavar="PEM", **key)


if __name__ == "__main__":
    run(main)
