# SPDX-License-Identifier: Apache-2.0
"""What the web page asks for: plain values in, plain values out, within limits."""

import contextlib
import hashlib
import io
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from PIL import Image

from data_pipeline.images import ImageError, decode
from fmfa_jax.figures.words import is_content_word, is_word
from fmfa_jax.search.query import MAX_LETTERS, Searcher, mixed
from fmfa_jax.search.store import SearchError

MAX_UPLOAD = 8 * 2**20
"""Bytes of an example picture."""
DEPTH = 1000
"""Pages end after this many pictures."""
PAGE = 20
LARGEST_PAGE = 100
SIDES = {"small": (240, 320), "large": (900, 1200)}
"""Largest width and height of the pictures that are sent out."""
WAITING = 8
"""Requests that may wait for the model; further ones are told to come again."""
EXAMPLES = 64
"""Example pictures whose embeddings are remembered."""


class BusyError(RuntimeError):
    """Too many requests at once."""


class Service:
    """Answers for one index; threads may share it.

    Unusable values raise SearchError; too many requests at once raise BusyError.
    """

    def __init__(self, searcher: Searcher) -> None:
        self.searcher = searcher
        self._turn = threading.Lock()
        self._places = threading.BoundedSemaphore(WAITING + 1)
        self._examples: OrderedDict[str, Float32[np.ndarray, "d"]] = OrderedDict()
        self._sentence = lru_cache(256)(searcher.vector)
        self._small = lru_cache(512)(self._drawn)
        # Row numbers mean other pictures once the index has changed.
        record = repr(searcher.gallery.record).encode()
        self.version = hashlib.sha256(record).hexdigest()[:16]

    def about(self) -> dict[str, Any]:
        """Describe the gallery and the limits."""
        gallery = self.searcher.gallery
        return {
            "name": Path(gallery.record.gallery).name,
            "pictures": len(gallery),
            "engine": "faiss" if gallery.record.faiss else "exact",
            "page": PAGE,
            "letters": MAX_LETTERS,
            "upload": MAX_UPLOAD,
        }

    def search(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Find pictures.

        Args:
            asked: "sentence", "example" (a key from `keep_example`), "minimum" (cosine
                or None), "offset" and "limit" (a page); all may be absent.
        """
        sentence, example = _text(asked, "sentence"), _text(asked, "example")
        offset = _whole(asked, "offset", 0, 0, DEPTH - 1)
        limit = _whole(asked, "limit", PAGE, 1, LARGEST_PAGE)
        top = min(offset + limit, DEPTH)
        with self._alone():
            vector = self._query(sentence, example)
            found = self.searcher.search(vector, top, minimum=_minimum(asked))
        return {
            "results": [
                {
                    "row": row,
                    "rank": rank,
                    "similarity": round(cosine, 4),
                    "file": self.searcher.gallery.file(row),
                    "picture": f"/picture/{self.version}/{row}",
                }
                for rank, row, cosine in islice(found.hits(), offset, None)
            ],
            "version": self.version,
            "matches": found.matches,
            "reachable": min(found.matches, DEPTH),
            "lowest": round(found.lowest, 4),
            "highest": round(found.highest, 4),
        }

    def keep_example(self, encoded: bytes) -> dict[str, str]:
        """Embed an example picture; the picture itself is not kept."""
        with self._alone():
            vector = self.searcher.vector(picture=encoded)
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
        self._check_version(_text(asked, "version"))
        row = _whole(asked, "row", -1, 0, len(self.searcher.gallery) - 1)
        with self._alone():
            maps = self.searcher.explain(_text(asked, "sentence"), row)
        config = self.searcher.model.model.config
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
        self._check_version(version)
        if size not in SIDES:
            raise SearchError(f"size {size!r}: wanted one of {', '.join(SIDES)}")
        return (self._small if size == "small" else self._drawn)(row, size)

    def _check_version(self, version: str) -> None:
        if version != self.version:
            raise SearchError("the index has changed: search again")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait for the model, unless too many wait already."""
        if not self._places.acquire(blocking=False):
            raise BusyError("too many searches at once; try again in a moment")
        try:
            with self._turn:
                yield
        finally:
            self._places.release()

    def _query(self, sentence: str, example: str) -> Float32[np.ndarray, "d"]:
        if not example:
            return self._sentence(sentence)
        if example not in self._examples:
            raise SearchError("the example picture is forgotten: choose it again")
        self._examples.move_to_end(example)
        vector = self._examples[example]
        return mixed(vector, self._sentence(sentence)) if sentence.strip() else vector

    def _drawn(self, row: int, size: str) -> bytes:
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


def _text(asked: Mapping[str, Any], name: str) -> str:
    value = asked.get(name) or ""
    if not isinstance(value, str):
        raise SearchError(f"{name}: wanted text")
    return value


def _whole(
    asked: Mapping[str, Any], name: str, default: int, low: int, high: int
) -> int:
    value = asked.get(name, default)
    if type(value) is not int or not low <= value <= high:
        raise SearchError(f"{name}: wanted a whole number from {low} to {high}")
    return value


def _minimum(asked: Mapping[str, Any]) -> float:
    value = asked.get("minimum")
    if value is None:
        return -2.0
    # False for NaN, infinities and integers beyond any float.
    if type(value) not in (int, float) or not -1e9 <= value <= 1e9:
        raise SearchError("minimum: wanted a number")
    return float(value)
