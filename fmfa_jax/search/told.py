# SPDX-License-Identifier: Apache-2.0
"""What the commands of search say about their progress and about what they did."""

import sys
import time
from datetime import timedelta
from pathlib import Path

from data_pipeline.command import say
from data_pipeline.hints import printable
from fmfa_jax.search import store
from fmfa_jax.search.store import SearchError
from fmfa_jax.search.update import Change

_SHOWN = 10


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


def report(folder: str, change: Change, *, embedded: bool = True) -> None:
    """Print what a command did, with everything that was left out.

    Raises:
        SearchError: Pictures were to be embedded, and the index holds none: of those
            that came not one could be used.
    """
    pictures = count(change.rows, "picture")
    say(f"{folder}: {pictures} ({change.added} added, {change.removed} removed)")
    if change.reused:
        print(f"not embedded again, their content is known: {change.reused} of them")
    if change.others:
        print(f"left alone, not pictures by name: {count(change.others, 'file')}")
    if change.excluded:
        excluded = count(change.excluded, "picture")
        print(f"left out, because removed before: {excluded}; `add` them by name")
    if change.gone:
        _tell_gone(change)
    if change.skipped:
        print(f"not entered: {count(len(change.skipped), 'folder')}")
        _rows([(each.folder, each.reason) for each in change.skipped])
    if change.bad:
        bad = count(len(change.bad), "file")
        say(f"unusable: {bad}, listed in {Path(folder) / store.BAD_LIST}")
    _rows([(each.file, each.reason) for each in change.met])
    if change.faiss:
        recall, probes = change.faiss.recall, count(change.faiss.probes, "cell")
        print(f"FAISS: recall@10 against exact search {recall:.4f} ", end="")
        print(f"(the worse of sentences and pictures), visiting {probes}")
    if change.remote and change.rows:
        recall, uri = change.remote.recall, printable(change.remote.uri)
        print(f"Qdrant at {uri}: recall@10 against exact search {recall:.4f} ", end="")
        print(f"(the worse of sentences and pictures), effort {change.remote.effort}")
    if embedded and change.bad and not change.rows:
        raise SearchError(
            f"{folder} holds no pictures: not one of {count(len(change.bad), 'file')} "
            "could be used, for the reasons above"
        )


def count(number: int, what: str) -> str:
    """Return a number of things in words."""
    return f"{number} {what}" + "s" * (number != 1)


def _tell_gone(change: Change) -> None:
    gone = f"no longer on the disk: {count(change.gone, 'picture')}"
    if change.gone == change.rows:
        print(f"{gone}, which is all; is the gallery's disk there?")
    else:
        print(f"{gone}; `remove --missing` takes them out")


def _rows(rows: list[tuple[str, str]]) -> None:
    for name, reason in rows[:_SHOWN]:
        print(f"  {printable(name)}: {printable(reason)}")
    if len(rows) > _SHOWN:
        print(f"  and {len(rows) - _SHOWN} more")
