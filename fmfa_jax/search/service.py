# SPDX-License-Identifier: Apache-2.0
"""What the web page asks for: plain values in, plain values out, within limits."""

import contextlib
import hashlib
import io
import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from PIL import Image

from data_pipeline.datasets.folder import people
from data_pipeline.datasets.raw import AnnotationError
from data_pipeline.images import ImageError, decode
from fmfa_jax.figures.words import is_content_word, is_word
from fmfa_jax.search.asked import check_names, cosine, text, texts, whole
from fmfa_jax.search.query import MAX_LETTERS, Searcher, mixed, written
from fmfa_jax.search.store import SearchError
from fmfa_jax.weights import WeightsError

MAX_UPLOAD = 8 * 2**20
"""Bytes of an example picture."""
DEPTH = 1000
"""Pages end after this many pictures."""
PAGE = 20
LARGEST_PAGE = 100
SENTENCES = 32
"""Sentences of one request."""
SIDES = {"small": (240, 320), "large": (900, 1200)}
"""Largest width and height of the pictures that are sent out."""
WAITING = 64
"""Requests that may wait for the model; further ones are told to come again."""
WAIT_SECONDS = 10
"""How long they may wait."""
RETRY_SECONDS = 5
"""Until an index that could not be opened again is tried again as it is."""

EXAMPLES = 64
"""Example pictures whose embeddings are remembered."""


_log = logging.getLogger(__name__)


class BusyError(RuntimeError):
    """Too many requests at once."""


class _View:
    """One content of the index, and what is remembered of it."""

    def __init__(self, searcher: Searcher) -> None:
        self.searcher = searcher
        self.sentence = lru_cache(256)(searcher.vector)
        self.cut = lru_cache(256)(searcher.cut)
        self.small = lru_cache(512)(self.drawn)
        # Row numbers mean other pictures once the index has changed.
        record = repr(searcher.gallery.record).encode()
        self.version = hashlib.sha256(record).hexdigest()[:16]

    @cached_property
    def people(self) -> dict[str, str]:
        """Who is in the pictures, if the gallery is a data set that says so."""
        try:
            return people(self.searcher.gallery.root)
        except AnnotationError as error:
            _log.warning("nobody is named: %s", error)
            return {}

    def drawn(self, row: int, size: str) -> bytes:
        """Encode a picture of the gallery anew."""
        encoded = self.searcher.gallery.read(row)
        try:
            image = Image.fromarray(decode(encoded))
        except ImageError as error:
            file = self.searcher.gallery.file(row)
            raise SearchError(f"{file} can no longer be read") from error
        image.thumbnail(SIDES[size], Image.Resampling.LANCZOS)
        out = io.BytesIO()
        image.save(out, format="JPEG", quality=88)
        return out.getvalue()

    def hit(self, rank: int, row: int, similarity: float) -> dict[str, Any]:
        """Describe a picture that was found."""
        file = self.searcher.gallery.file(row)
        return {
            "rank": rank,
            "similarity": round(similarity, 4),
            "file": file,
            "person": self.people.get(file),
            "picture": f"picture/{self.version}/{row}/large",
        }

    def check_version(self, version: str) -> None:
        """Raise SearchError if row numbers are of another content."""
        if version != self.version:
            raise SearchError("the index has changed: search again")


class Service:
    """Answers for one index, as it is at the time; threads may share it.

    Unusable values raise SearchError; too many requests at once raise BusyError.
    """

    def __init__(self, searcher: Searcher) -> None:
        self._view = _View(searcher)
        self._opening = threading.Lock()
        self._turn = threading.Lock()
        self._places = threading.BoundedSemaphore(WAITING + 1)
        self._examples: OrderedDict[str, Float32[np.ndarray, "d"]] = OrderedDict()
        self.trouble = ""
        self._tried: tuple[Any, float] = ((), 0.0)

    @property
    def version(self) -> str:
        """Tells one content of the index from the next."""
        return self._current().version

    def ready(self) -> bool:
        """Whether the index as it is now is the one that is served.

        If not, `trouble` says why; what was opened before is served on.
        """
        self._current()
        return not self.trouble

    def _current(self) -> _View:
        """Open the index again if it has changed."""
        with self._opening:
            view = self._view
            seen, now = written(view.searcher.gallery.folder), time.monotonic()
            if self.trouble and seen == self._tried[0] and now < self._tried[1]:
                return view  # it has just failed, and may take long
            try:
                searcher = view.searcher.refreshed()
            except (SearchError, WeightsError, OSError) as error:
                if not self.trouble:
                    _log.warning("the index as it was is served on: %s", error)
                self.trouble = str(error)
                self._tried = seen, time.monotonic() + RETRY_SECONDS
                return view
            self.trouble = ""
            if searcher is not view.searcher:
                self._view = _View(searcher)
                if searcher.model is not view.searcher.model:
                    self._examples.clear()
            return self._view

    def about(self) -> dict[str, Any]:
        """Describe the gallery and the limits."""
        gallery = self._current().searcher.gallery
        return {
            "name": Path(gallery.record.gallery).name,
            "pictures": len(gallery),
            "engine": gallery.record.engine if gallery.record.approximate else "exact",
            "page": PAGE,
            "letters": MAX_LETTERS,
            "upload": MAX_UPLOAD,
            "sentences": SENTENCES,
        }

    def search(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Find pictures.

        Args:
            asked: "sentence", "example" (a key from `keep_example`), "minimum" (cosine
                or None), "offset" and "limit" (a page); all may be absent.
        """
        sentence, example = text(asked, "sentence"), text(asked, "example")
        offset = whole(asked, "offset", 0, 0, DEPTH - 1)
        limit = whole(asked, "limit", PAGE, 1, LARGEST_PAGE)
        top = min(offset + limit, DEPTH)
        with self._alone():
            view = self._current()
            vector = self._query(view, sentence, example)
            found = view.searcher.search(vector, top, minimum=cosine(asked, "minimum"))
        return {
            "results": [
                {
                    "row": row,
                    "rank": rank,
                    "similarity": round(similarity, 4),
                    "file": view.searcher.gallery.file(row),
                    "picture": f"/picture/{view.version}/{row}",
                }
                for rank, row, similarity in islice(found.hits(), offset, None)
            ],
            "version": view.version,
            # How many words the model reads, if the sentence has more.
            "cut": view.cut(sentence),
            "matches": found.matches,
            "reachable": min(found.matches, DEPTH),
            "lowest": round(found.lowest, 4),
            "highest": round(found.highest, 4),
        }

    def search_all(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Find pictures for each of several sentences, all in one content of the index.

        Args:
            asked: "sentences" (a list), "example" (a key from `keep_example`, which
                each sentence is mixed with, or which is asked alone), "top" and
                "minimum" (cosine or None). One of the first two must be there.
        """
        check_names(asked, ("sentences", "example", "top", "minimum"))
        sentences, example = (
            texts(asked, "sentences", SENTENCES),
            text(asked, "example"),
        )
        if not sentences and not example:
            raise SearchError("wanted sentences, an example, or both")
        top, minimum = (
            whole(asked, "top", 10, 1, LARGEST_PAGE),
            cosine(asked, "minimum"),
        )
        view = self._current()
        results = []
        for sentence in sentences or [""]:
            # A turn for each: many sentences hold up nobody's one.
            with self._alone():
                vector = self._query(view, sentence, example)
                found = view.searcher.search(vector, top, minimum=minimum)
            hits = [view.hit(*hit) for hit in found.hits()]
            result = {"sentence": sentence, "words_read": view.cut(sentence)}
            results.append(result | {"matches": found.matches, "hits": hits})
        return {"version": view.version, "results": results}

    def keep_example(self, encoded: bytes) -> dict[str, str]:
        """Embed an example picture; the picture itself is not kept."""
        with self._alone():
            vector = self._current().searcher.vector(picture=encoded)
            key = secrets.token_urlsafe(16)
            self._examples[key] = vector
            while len(self._examples) > EXAMPLES:
                self._examples.popitem(last=False)
        return {"example": key}

    def explain(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Tell which regions of a picture each word matched.

        Args:
            asked: "sentence", "row", and "version" of the search that gave the row.
        """
        view = self._current()
        view.check_version(text(asked, "version"))
        row = whole(asked, "row", -1, 0, len(view.searcher.gallery) - 1)
        with self._alone():
            maps = view.searcher.explain(text(asked, "sentence"), row)
        config = view.searcher.model.model.config
        covered = [
            ((count - 1) * config.stride + config.patch) / side
            for count, side in zip(config.grid, config.image_size, strict=True)
        ]
        views = zip(maps.words, maps.strength.tolist(), maps.patches, strict=True)
        words = [
            {
                "word": word,
                # Punctuation is part of the sentence but matches no region.
                "shown": is_word(word),
                "content": is_content_word(word),
                "strength": round(strength, 4),
                "cells": cells.astype(float).round(5).reshape(config.grid).tolist(),
            }
            for word, strength, cells in views
        ]
        return {"words": words, "covered": covered}

    def picture(self, version: str, row: int, size: str) -> bytes:
        """Return a picture of the gallery, decoded and encoded anew as a JPEG."""
        view = self._current()
        view.check_version(version)
        if size not in SIDES:
            raise SearchError(f"size {size!r}: wanted one of {', '.join(SIDES)}")
        return (view.small if size == "small" else view.drawn)(row, size)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait for the model, unless too many wait already, or for too long."""
        busy = BusyError("too many searches at once; try again in a moment")
        if not self._places.acquire(blocking=False):
            raise busy
        try:
            if not self._turn.acquire(timeout=WAIT_SECONDS):
                raise busy
            try:
                yield
            finally:
                self._turn.release()
        finally:
            self._places.release()

    def _query(
        self, view: _View, sentence: str, example: str
    ) -> Float32[np.ndarray, "d"]:
        if not example:
            return view.sentence(sentence)
        try:
            self._examples.move_to_end(example)
            vector = self._examples[example]
        except KeyError:
            told = "the example picture is forgotten: choose it again"
            raise SearchError(told) from None
        return mixed(vector, view.sentence(sentence)) if sentence.strip() else vector
