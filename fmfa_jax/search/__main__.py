# SPDX-License-Identifier: Apache-2.0
"""Find people by sentence in a gallery.

python -m fmfa_jax.search index GALLERY --model runs/demo --out people.index
python -m fmfa_jax.search query people.index "a man in a red jacket" --sheet found.png
python -m fmfa_jax.search add people.index
python -m fmfa_jax.search remove people.index camera_7/
python -m fmfa_jax.search serve people.index
python -m fmfa_jax.search verify people.index
python -m fmfa_jax.search export people.index people.parquet --to parquet
"""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from PIL import Image

from data_pipeline.command import run, say, told_of
from data_pipeline.delivery import delivered
from data_pipeline.hints import printable
from data_pipeline.images import ImageError
from data_pipeline.regular import read_regular
from fmfa_jax.evaluation.runs import open_data
from fmfa_jax.figures.rankings import save
from fmfa_jax.machines.lifecycle import leave
from fmfa_jax.machines.processes import gather, initialize_distributed, together
from fmfa_jax.search import index, store
from fmfa_jax.search.arguments import PASSWORD, parser
from fmfa_jax.search.encoder import open_model, reopen_model
from fmfa_jax.search.export import export
from fmfa_jax.search.query import Searcher, contact_sheet, open_searcher
from fmfa_jax.search.store import IndexRecord, SearchError
from fmfa_jax.search.told import ProgressLine, count, report
from fmfa_jax.search.update import Change
from fmfa_jax.search.verify import verify
from fmfa_jax.weights import WeightsError
from fmfa_jax.weights.arguments import stated


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
        code = told_of(args, error)
        leave(error)
        return code
    except KeyboardInterrupt as error:
        leave(error)
        raise
    return 0


def _index(args: argparse.Namespace) -> None:
    with _joined():
        model = open_model(args.model, tokenizer=args.tokenizer, **stated(args))
    loaded = model.model.report
    if loaded.assumes:
        say(f"activation: {loaded.activation}", sys.stderr)
    kept = _picked(args, "storage", "engine", "uri", "batch_size", "save_every")
    kept |= {"follow_links": args.follow_links, "progress": ProgressLine()}
    _report(args.out, index.index_gallery(args.gallery, args.out, model, **kept))


def _add(args: argparse.Namespace) -> None:
    folder, paths = Path(args.index).resolve(), _given(args.paths)
    with _joined():
        model = reopen_model(folder, store.read_record(folder), args.model)
    kept = _picked(args, "batch_size", "save_every", "follow_links", "gallery")
    change = index.add(folder, model, paths, progress=ProgressLine(), **kept)
    _report(args.index, change)


def _joined() -> AbstractContextManager[None]:
    """Join the other processes, if there are any; all then open the model."""
    # A SIGTERM may end it: what is committed stays, and the same command continues.
    initialize_distributed(preemption=False)
    gather(None)  # while all are here: gloo waits for none of them for long
    return together("opening the model")


def _report(folder: str, change: Change | None) -> None:
    if change is not None:  # the first process tells
        report(folder, change)


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


def _export(args: argparse.Namespace) -> None:
    data = open_data(args.data) if args.data else None
    with delivered(args, new=True) as address:
        rows, known = export(args.index, args.out, args.to, data)
    of = f", the person known of {known}" if data else ""
    say(f"{address(args.out)}: {count(rows, 'picture')}{of}")


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
    commands = (_index, _add, _remove, _query, _serve, _verify, _export)
    return parser(__doc__, {each.__name__[1:]: each for each in commands})


if __name__ == "__main__":
    run(main)
