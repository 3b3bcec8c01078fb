# SPDX-License-Identifier: Apache-2.0
"""Ask an index: by sentence, by example picture, or by both."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from PIL import Image

from data_pipeline.hints import printable
from data_pipeline.images import ImageError, decode, decode_resized
from data_pipeline.tokenizer import cut_captions
from fmfa_jax.figures import Hit, Ranking, sheet
from fmfa_jax.figures.words import WordMaps, word_maps
from fmfa_jax.search.approximate import ApproximateSearch
from fmfa_jax.search.encoder import IndexModel, embeddings, reopen_model
from fmfa_jax.search.exact import ExactSearch, Found
from fmfa_jax.search.gallery import is_gone, read_file
from fmfa_jax.search.index import moved
from fmfa_jax.search.remote import RemoteSearch
from fmfa_jax.search.shards import Shard, open_shards
from fmfa_jax.search.store import (
    RECORD,
    FaissRecord,
    IndexRecord,
    SearchError,
    read_record,
)

MAX_LETTERS = 1000
"""A longer sentence is refused; a model reads 77 tokens at most."""
MAX_EXAMPLE_PIXELS = 32_000_000
_GAP = np.full((256, 128, 3), 232, np.uint8)
"""Stands in a sheet for a picture that is lost."""


class Gallery:
    """The pictures of an index, by number: its `folder`, `record` and `shards`.

    `root` is the folder of the pictures.
    """

    def __init__(
        self,
        folder: str | Path,
        root: str | Path | None = None,
        opened: Iterable[Shard] = (),
    ) -> None:
        """Open an index.

        Args:
            folder: The index.
            root: Where its pictures lie now, if not where the index says.
            opened: Shards that need not be opened again.
        """
        self.folder = Path(folder).resolve()
        self._written = written(self.folder)
        self.record = read_record(self.folder)
        while True:
            try:
                self.shards = open_shards(self.folder, self.record, opened)
                break
            except SearchError:
                # A writer may have replaced shards since the record was read.
                self._written, newer = written(self.folder), read_record(self.folder)
                if newer == self.record:
                    raise
                self.record = newer
        self.given = root
        self.root = Path(moved(self.folder, self.record, root, self.shards).gallery)
        starts = np.cumsum([0, *(len(shard.rows) for shard in self.shards)])
        self._starts: list[int] = starts.tolist()

    def stale(self) -> bool:
        """Whether the index has been written since it was opened, or is gone."""
        return written(self.folder) != self._written

    def __len__(self) -> int:
        return self._starts[-1]

    def file(self, row: int) -> str:
        """Return the name of a picture, relative to the gallery."""
        if not 0 <= row < len(self):
            raise SearchError(f"picture {row} of {len(self)}: there is none")
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        place = row - self._starts[shard]
        return self.shards[shard].stamps(place, place + 1)[0].file

    def there(self, row: int) -> bool:
        """Whether a picture's file still exists."""
        return not is_gone(self.root, self.file(row))

    def read(self, row: int) -> bytes:
        """Return the encoded picture, unless its file is gone or leads elsewhere."""
        file = self.file(row)
        try:
            return read_file(self.root, file)
        except OSError as error:
            if not self.root.is_dir():
                what = "the gallery is not where the index says; name its place with"
                raise SearchError(f"{what} --gallery") from error
            raise SearchError(
                f"the picture {file} is no longer in the gallery: take it out of the "
                "index with `remove`"
            ) from error


def written(folder: Path) -> tuple[int, ...]:
    """Tell one content of index.json from the next; () if there is none."""
    try:
        status = (folder / RECORD).stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class Searcher:
    """An index with its model; `given` is where the latter lies, if not where noted."""

    gallery: Gallery
    model: IndexModel
    find: ExactSearch | ApproximateSearch | RemoteSearch
    given: str | None = None

    def vector(
        self, sentence: str = "", picture: bytes = b""
    ) -> Float32[np.ndarray, "d"]:
        """Embed a query: a sentence, an encoded picture, or both in equal shares."""
        parts = []
        if sentence.strip():
            parts.append(self.model.sentences([_checked(sentence)])[0])
        if picture:
            parts.append(self.model.pictures(self._example(picture)[None])[0])
        if not parts:
            raise SearchError("the query is empty: wanted a sentence or a picture")
        return mixed(*parts)

    def search(
        self, vector: Float32[np.ndarray, "d"], top: int, *, minimum: float = -2.0
    ) -> Found:
        """Find the pictures that are nearest to a query; see `ExactSearch`."""
        if top < 1:
            raise SearchError(f"the first {top} pictures: wanted at least 1")
        if not len(self.gallery):
            raise SearchError("the index holds no pictures; `add` some")
        return self.find(vector, top, minimum=minimum)

    def cut(self, sentence: str) -> int | None:
        """Return how many words of a sentence the model reads; None if all."""
        tokenizer, length = self.model.tokenizer, self.model.model.config.context_length
        if not cut_captions(tokenizer, [sentence], length):
            return None
        return len(tokenizer.words(tokenizer.encode([sentence], length)[0]))

    def refreshed(self) -> "Searcher":
        """Return the searcher of the index as it is now: itself, if nothing changed.

        New shards are checked; the model is opened again only if it is another.
        """
        if not self.gallery.stale():
            return self
        old = self.gallery
        gallery = Gallery(old.folder, old.given, old.shards)
        model, record = self.model, gallery.record
        if not _same_model(record, old.record):
            model = reopen_model(gallery.folder, record, self.given)
        sound = self.find.checked if isinstance(self.find, ExactSearch) else ()
        find = _finder(gallery, sound)
        if isinstance(find, ExactSearch):
            find.check()
        return Searcher(gallery, model, find, self.given)

    def explain(self, sentence: str, row: int) -> WordMaps:
        """Tell which regions of a picture each word of a sentence goes with.

        Uses EFA's similarity, which any model has, with the rule of the model's run if
        it lies in one; see `figures.words`.
        """
        if not _checked(sentence).strip():
            raise SearchError("no words came: wanted a sentence")
        tokenizer, towers = self.model.tokenizer, self.model.model
        tokens = tokenizer.encode([sentence], towers.config.context_length)
        picture = self._example(self.gallery.read(row))
        image, text = towers.forward_tokens(picture[None], tokens)
        words = tokenizer.words(tokens[0])
        return word_maps(text[0], image[0], words, rule=self.model.efa_rule)[0]

    def _example(self, encoded: bytes) -> np.ndarray:
        try:
            return decode_resized(
                encoded, self.model.image_size, max_pixels=MAX_EXAMPLE_PIXELS
            )
        except ImageError as error:
            raise SearchError(f"the picture cannot be read: {error}") from error


def mixed(*vectors: Float32[np.ndarray, "d"]) -> Float32[np.ndarray, "d"]:
    """Return the unit vector between unit vectors."""
    return embeddings(np.sum(vectors, axis=0)[None])[0]


def open_searcher(
    folder: str | Path, *, model: str | None = None, gallery: str | None = None
) -> Searcher:
    """Open an index and its model; both it and the pictures may lie elsewhere now."""
    opened = Gallery(folder, gallery)
    if not len(opened):
        raise SearchError(f"the index {folder} holds no pictures; `add` some")
    retriever = reopen_model(opened.folder, opened.record, model)
    return Searcher(opened, retriever, _finder(opened), model)


def _finder(
    gallery: Gallery, checked: Collection[Shard] = ()
) -> ExactSearch | ApproximateSearch | RemoteSearch:
    made = gallery.record.approximate
    if isinstance(made, FaissRecord):
        return ApproximateSearch(gallery.folder, made)
    if made:
        return RemoteSearch(made, gallery.shards)
    return ExactSearch(gallery.shards, checked)


def _same_model(one: IndexRecord, other: IndexRecord) -> bool:
    names = ("model", "preprocessing", "tokenizer", "tokenizer_sha256")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def contact_sheet(searcher: Searcher, found: Found, caption: str) -> Image.Image:
    """Draw the pictures that were found, with rank, similarity and file.

    A picture that cannot be read any more leaves a gap.
    """
    hits = []
    for rank, row, cosine in found.hits():
        labels = (f"{rank}.  {cosine:.3f}", printable(searcher.gallery.file(row)))
        try:
            pixels = decode(searcher.gallery.read(row))
        except (SearchError, ImageError):
            pixels, labels = _GAP, (*labels, "cannot be read any more")
        hits.append(Hit(pixels=pixels, verdict="found", labels=labels))
    note = f"{len(hits)} of {len(searcher.gallery)} pictures"
    return sheet([Ranking(caption=caption, note=note, hits=tuple(hits))])


def _checked(sentence: str) -> str:
    if len(sentence) > MAX_LETTERS:
        letters = f"{len(sentence)} letters, at most {MAX_LETTERS} are taken"
        raise SearchError(f"the sentence has {letters}")
    return sentence
