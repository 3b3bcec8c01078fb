# SPDX-License-Identifier: Apache-2.0
"""Approximate search by Qdrant, which may be a cluster of machines.

The shards of the index stay what it holds; a collection holds the same rows. A point's
id says its shard, by SHA-256, and its place there, so that points never change: those
of new shards are added before index.json names them, others are deleted after.
"""

import contextlib
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float32

from fmfa_jax.search.approximate import (
    PICTURES,
    RECALL_WANTED,
    SENTENCES,
    TOP,
    recall,
    sample,
)
from fmfa_jax.search.encoder import IndexModel
from fmfa_jax.search.exact import ExactSearch, Found
from fmfa_jax.search.shards import Shard
from fmfa_jax.search.store import RemoteRecord, SearchError

KEY = "QDRANT_API_KEY"
"""Variable with the key of a server that wants one; it is written nowhere."""
EMBEDDED = ":memory:"
"""In place of an address: a Qdrant within this process, which ends with it."""
_POINTS = 512
"""Points in a request."""
_PREFIX = 12
"""Bytes of a point's id that are its shard's; the other four are its place."""
_EFFORTS = (128, 256, 512, 1024)
_SECONDS = 60


def load_qdrant() -> Any:
    """Import the client of Qdrant; raise SearchError if it is not installed."""
    try:
        import qdrant_client
    except ImportError as error:
        raise SearchError(
            "the engine 'qdrant' needs a package that is not installed: "
            "pip install qdrant-client; the engine 'exact' needs nothing"
        ) from error
    return qdrant_client


def new_collection(uri: str) -> RemoteRecord:
    """Choose a name that no collection has.

    Raises:
        SearchError: No Qdrant answers at `uri`.
    """
    name = f"fmfa-{uuid.uuid4().hex}"
    with _told(uri):
        _client(uri).collection_exists(name)
    return RemoteRecord(uri, name)


def hand_over(
    record: RemoteRecord, shards: Sequence[Shard], model: IndexModel
) -> RemoteRecord:
    """Add the rows that a collection lacks, and measure its recall.

    Returns:
        The record with the effort of a query that finds what is wanted.
    """
    uri, collection = record.uri, record.collection
    with _told(uri):
        client, models = _client(uri), load_qdrant().models
        if not client.collection_exists(collection):
            size = shards[0].rows.shape[1]
            dot = models.VectorParams(
                size=size, distance=models.Distance.DOT, on_disk=True
            )
            client.create_collection(collection, vectors_config=dot)
            if uri != EMBEDDED:
                kind = models.PayloadSchemaType.KEYWORD
                client.create_payload_index(collection, "shard", kind)
        for shard in shards:
            if _count(client, collection, shard) != len(shard.rows):
                for points in _points(shard):
                    client.upsert(collection, points=points, wait=True)
    return _measured(record, shards, model)


def complete(record: RemoteRecord, shards: Sequence[Shard]) -> bool:
    """Whether a collection has a point for every row of an index."""
    with _told(record.uri):
        client = _client(record.uri)
        return all(
            _count(client, record.collection, shard) == len(shard.rows)
            for shard in shards
        )


def tidy(record: RemoteRecord, shards: Sequence[Shard]) -> None:
    """Delete the points of shards that the index no longer has."""
    with _told(record.uri):
        client, models = _client(record.uri), load_qdrant().models
        if not client.collection_exists(record.collection):
            return
        names = models.MatchAny(any=[shard.sha256 for shard in shards])
        named = models.FieldCondition(key="shard", match=names)
        others = models.FilterSelector(filter=models.Filter(must_not=[named]))
        client.delete(record.collection, points_selector=others, wait=True)


class RemoteSearch:
    """A collection that holds the shards of an index."""

    def __init__(self, record: RemoteRecord, shards: Sequence[Shard]) -> None:
        self._record = record
        starts = np.cumsum([0, *(len(shard.rows) for shard in shards)]).tolist()
        self._starts = dict(zip(map(_prefix, shards), starts, strict=False))

    def __call__(
        self, query: Float32[np.ndarray, "d"], top: int, *, minimum: float = -2.0
    ) -> Found:
        """See `ExactSearch`; matches and lowest cover the found rows only.

        Raises:
            SearchError: Qdrant does not answer, or holds none of the index's rows.
        """
        uri, models = self._record.uri, load_qdrant().models
        # An embedded Qdrant compares all rows, and warns of what it does not need.
        effort = models.SearchParams(hnsw_ef=max(self._record.effort, top))
        with _told(uri):
            points = _client(uri).query_points(
                self._record.collection,
                query=query.tolist(),
                limit=top,
                search_params=None if uri == EMBEDDED else effort,
                with_payload=False,
            )
        found = [(self._row(point.id), point.score) for point in points.points]
        pairs = [(row, score) for row, score in found if row is not None]
        if not pairs:
            raise SearchError(
                f"the collection {self._record.collection} at {uri} does not hold the "
                "rows of this index: index the gallery again into another folder"
            )
        rows, scores = np.array(pairs).T
        order = np.lexsort((rows, -scores))
        rows, scores = rows[order].astype(np.int64), scores[order].astype(np.float32)
        keep = scores >= minimum
        lowest, highest = float(scores[-1]), float(scores[0])
        return Found(rows[keep], scores[keep], int(keep.sum()), lowest, highest)

    def _row(self, point: str) -> int | None:
        """The row of a point; None if its shard is no longer, or not yet, ours."""
        code = uuid.UUID(point).bytes
        start = self._starts.get(code[:_PREFIX])
        return None if start is None else start + int.from_bytes(code[_PREFIX:])


def _measured(
    record: RemoteRecord, shards: Sequence[Shard], model: IndexModel
) -> RemoteRecord:
    """Raise the effort until both kinds of queries have the wanted recall."""
    total, find = sum(len(shard.rows) for shard in shards), ExactSearch(shards)
    queries = [model.sentences(SENTENCES), sample(shards, min(total, PICTURES))]
    exact = [[set(find(q, TOP).rows.tolist()) for q in each] for each in queries]
    for effort in _EFFORTS:
        tried = replace(record, effort=effort)
        search = RemoteSearch(tried, shards)
        found = [[search(q, TOP).rows.tolist() for q in each] for each in queries]
        tried = replace(tried, recall=min(map(recall, found, exact)))
        if tried.recall >= RECALL_WANTED:
            break
    return tried


def _points(shard: Shard) -> Iterator[Any]:
    batch = load_qdrant().models.Batch
    for first in range(0, len(shard.rows), _POINTS):
        stamps = shard.stamps(first, first + _POINTS)
        yield batch(
            ids=[_id(shard, first + place) for place in range(len(stamps))],
            vectors=shard.unit(slice(first, first + _POINTS)).tolist(),
            payloads=[{"shard": shard.sha256}] * len(stamps),
        )


def _count(client: Any, collection: str, shard: Shard) -> int:
    models = load_qdrant().models
    value = models.MatchValue(value=shard.sha256)
    ours = models.Filter(must=[models.FieldCondition(key="shard", match=value)])
    return client.count(collection, count_filter=ours, exact=True).count


def _id(shard: Shard, place: int) -> str:
    return str(uuid.UUID(bytes=_prefix(shard) + place.to_bytes(16 - _PREFIX)))


def _prefix(shard: Shard) -> bytes:
    return bytes.fromhex(shard.sha256)[:_PREFIX]


@cache
def _client(uri: str) -> Any:
    client = load_qdrant().QdrantClient
    if uri == EMBEDDED:
        return client(location=EMBEDDED)
    # A folder, which the client would take, too, holds pickles: they could run code.
    if not uri.startswith(("http://", "https://")):
        raise SearchError(f"wanted http://HOST:PORT of a Qdrant, got {uri!r}")
    key = os.environ.get(KEY) or None
    # The check would ask in a thread of its own, and fail there.
    return client(url=uri, api_key=key, timeout=_SECONDS, check_compatibility=False)


@contextlib.contextmanager
def _told(uri: str) -> Iterator[None]:
    """Turn what the client raises, of many kinds, into a SearchError."""
    try:
        yield
    except SearchError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise SearchError(
            f"Qdrant at {uri}: {reason or type(error).__name__}"
        ) from error
