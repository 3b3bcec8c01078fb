# SPDX-License-Identifier: Apache-2.0
"""The words that the commands of search take."""

import argparse
from collections.abc import Callable, Mapping

from data_pipeline.command import Parser, path, source, target
from fmfa_jax.search import store
from fmfa_jax.search.export import FORMATS
from fmfa_jax.weights.arguments import add_model_arguments, model_path, positive

PASSWORD = "FMFA_SEARCH_PASSWORD"


def parser(
    description: str, run: Mapping[str, Callable[[argparse.Namespace], None]]
) -> argparse.ArgumentParser:
    """Make the parser; `run` has what each command calls."""
    parser = Parser(
        module="fmfa_jax.search",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        """Add the parser of a subcommand."""
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(run=run[name])
        return made

    make = command("index", "embed a folder; run again to continue or update")
    grow = command("add", "embed the gallery's new and changed pictures")
    shrink = command("remove", "take pictures out; their files stay")
    ask = command("query", "print the nearest pictures")
    serve = command("serve", "open the web page")
    sound = command("verify", "compare an index with its SHA-256 digests")
    give = command("export", "write the embeddings for another engine")
    _index_options(make)
    for each in (grow, shrink, ask, serve, sound, give):
        kind = path if each in (grow, shrink) else source  # which are written to
        each.add_argument("index", type=kind, help="folder of the index")
    for each in (grow, shrink, ask, serve):
        text = "where the index's model lies now"
        each.add_argument("--model", type=model_path, help=text)
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
    data = "NAME:ROOT of the gallery's data set, which knows the persons"
    give.add_argument("out", type=target, help="file, or folder for npy; must be new")
    give.add_argument("--to", choices=FORMATS, required=True)
    give.add_argument("--data", metavar="DATA", help=data)
    return parser


def _index_options(make: argparse.ArgumentParser) -> None:
    make.add_argument(
        "gallery", type=source, help="folder of pictures, subfolders included"
    )
    text = "run folder, weight file, or hf://ORG/NAME"
    make.add_argument("--model", type=model_path, required=True, help=text)
    make.add_argument("--out", type=path, required=True, help="folder of the index")
    make.add_argument(
        "--tokenizer", type=source, help='"clip" or a folder; default: the run\'s'
    )
    make.add_argument("--storage", choices=store.STORAGES, default="float32")
    make.add_argument("--engine", choices=store.ENGINES, default="exact")
    uri = "with --engine qdrant: where it listens, like http://HOST:6333"
    make.add_argument("--uri", default="", help=uri)
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
