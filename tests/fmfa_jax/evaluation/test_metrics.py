# SPDX-License-Identifier: Apache-2.0
"""The counted metrics against the official numbers and against a plain full sort."""

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from fmfa_jax.evaluation import (
    RetrievalMetrics,
    blocks,
    match_ranks,
    retrieval_metrics,
)

REFERENCE = Path(__file__).parents[2] / "reference" / "metrics.npz"


def reference_groups() -> list[dict[str, np.ndarray]]:
    with np.load(REFERENCE) as file:
        groups = sorted({name.split("/")[0] for name in file.files})
        names = ("similarity", "query_ids", "gallery_ids", "cmc", "mAP", "mINP")
        return [{name: file[f"{group}/{name}"] for name in names} for group in groups]


def oracle_ranks(
    similarity: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray
) -> Iterator[np.ndarray]:
    """Sort every whole row; among equals the wrong items come first."""
    for row, person in zip(similarity, query_ids, strict=True):
        right = gallery_ids == person
        order = np.lexsort((right, -row))
        yield np.flatnonzero(right[order]) + 1


def oracle_metrics(
    similarity: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray
) -> RetrievalMetrics:
    ranks = list(oracle_ranks(similarity, query_ids, gallery_ids))
    first = np.array([r[0] for r in ranks])
    precision = [np.mean(np.arange(1, len(r) + 1) / r) for r in ranks]
    penalty = [len(r) / r[-1] for r in ranks]
    shares = [100 * np.mean(first <= k) for k in (1, 5, 10)]
    areas = [100 * np.mean(precision), 100 * np.mean(penalty)]
    figures = [float(x) for x in (*shares, *areas)]
    return RetrievalMetrics(*figures, queries=len(ranks), gallery=len(gallery_ids))


def ranked_by(
    similarity: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray
) -> RetrievalMetrics:
    """Measure features whose cosines rank the gallery as these similarities do.

    Against orthogonal unit vectors, a query's cosines are its own row over its length.
    """
    gallery = np.eye(similarity.shape[1], dtype=np.float32)
    return retrieval_metrics(similarity, gallery, query_ids, gallery_ids)


def assert_same(ours: RetrievalMetrics, wanted: RetrievalMetrics) -> None:
    assert ours.as_dict() == pytest.approx(wanted.as_dict(), abs=1e-9)


def cosines(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    query = query / np.linalg.norm(query, axis=1, keepdims=True)
    gallery = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    return query @ gallery.T


def people(
    queries: int, gallery: int, persons: int, *, seed: int, width: int = 16
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Noisy features around one centre a person; each query has a match."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(persons, width))
    gallery_ids = rng.integers(0, persons, gallery)
    query_ids = rng.choice(gallery_ids, queries)
    features = [
        (centres[ids] + rng.normal(size=(len(ids), width))).astype(np.float32)
        for ids in (query_ids, gallery_ids)
    ]
    return *features, query_ids, gallery_ids


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


@pytest.mark.parametrize("group", reference_groups())
def test_the_official_numbers(group: dict[str, np.ndarray]) -> None:
    ids = group["query_ids"], group["gallery_ids"]
    ours = ranked_by(group["similarity"], *ids)
    shares = ours.r1, ours.r5, ours.r10
    assert shares == pytest.approx(tuple(group["cmc"][[0, 4, 9]]), abs=1e-4)
    assert ours.mAP == pytest.approx(float(group["mAP"]), abs=1e-4)
    assert ours.mINP == pytest.approx(float(group["mINP"]), abs=1e-4)
    assert (ours.queries, ours.gallery) == group["similarity"].shape


def test_both_directions_equal_a_full_sort() -> None:
    text, image, text_ids, image_ids = people(60, 45, 9, seed=0)
    text_ids[:9] = np.arange(9)  # every picture has a caption: i2t is defined
    image_ids[:9] = np.arange(9)
    similarity = cosines(text, image)
    t2i = retrieval_metrics(text, image, text_ids, image_ids)
    i2t = retrieval_metrics(image, text, image_ids, text_ids)
    assert_same(t2i, oracle_metrics(similarity, text_ids, image_ids))
    assert_same(i2t, oracle_metrics(similarity.T, image_ids, text_ids))
    assert t2i.r1 != i2t.r1


@pytest.mark.parametrize(("query_block", "gallery_block"), [(8, 16), (24, 32), (7, 50)])
def test_blocks_that_do_not_divide(query_block: int, gallery_block: int) -> None:
    query, gallery, query_ids, gallery_ids = people(61, 103, 12, seed=1)
    ours = retrieval_metrics(
        query,
        gallery,
        query_ids,
        gallery_ids,
        query_block=query_block,
        gallery_block=gallery_block,
    )
    wanted = oracle_metrics(cosines(query, gallery), query_ids, gallery_ids)
    assert_same(ours, wanted)


@pytest.mark.parametrize(
    ("gallery", "wanted"), [(20_000, 16), (200_000, 2), (10**6, 1)]
)
def test_all_blocks_at_a_time_fit_in_the_memory_of_a_strip(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, gallery: int, wanted: int
) -> None:
    monkeypatch.setattr(blocks, "cores", lambda: 16)
    size = blocks.fitting_queries(1000, gallery)
    at_once = blocks.blocks_at_once(size, gallery)
    assert at_once == wanted
    assert at_once * size * gallery * 4 <= blocks.STRIP_BYTES
    # Processes that share a mesh must multiply in the same order.
    assert blocks.blocks_at_once(size, gallery, mesh) == 1


@pytest.mark.parametrize("gallery", [3, 103, 300])
def test_eight_devices_equal_one(mesh: Mesh, gallery: int) -> None:
    query, features, query_ids, gallery_ids = people(40, gallery, 12, seed=2)
    arguments = query, features, query_ids, gallery_ids
    one = match_ranks(*arguments)
    eight = match_ranks(*arguments, gallery_block=16, mesh=mesh)
    np.testing.assert_array_equal(one.ranks, eight.ranks)
    np.testing.assert_array_equal(one.offsets, eight.offsets)
    wanted = oracle_ranks(cosines(query, features), query_ids, gallery_ids)
    np.testing.assert_array_equal(eight.ranks, np.concatenate(list(wanted)))


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_ties_count_against_the_model(levels: int) -> None:
    rng = np.random.default_rng(levels)
    query_ids, gallery_ids = rng.integers(0, 4, 50), rng.integers(0, 4, 40)
    similarity = rng.integers(0, levels, (50, 40)).astype(np.float32)
    ours = ranked_by(similarity, query_ids, gallery_ids)
    assert_same(ours, oracle_metrics(similarity, query_ids, gallery_ids))


def test_a_collapsed_model_earns_nothing() -> None:
    """All features equal: every wrong picture is as near as the right ones."""
    query, gallery = np.ones((20, 8), np.float32), np.ones((30, 8), np.float32)
    ids = np.arange(20) % 10, np.arange(30) % 10
    ours = retrieval_metrics(query, gallery, *ids)
    assert ours.r10 == 0
    assert ours.mINP == pytest.approx(100 * 3 / 30)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_length_and_float_type_do_not_matter(dtype: type) -> None:
    query, gallery, query_ids, gallery_ids = people(30, 40, 5, seed=3)
    rounded = query.astype(np.float16), gallery.astype(np.float16)
    scaled = (rounded[0] * 4).astype(dtype), (rounded[1] * 0.5).astype(dtype)
    ours = retrieval_metrics(*scaled, query_ids, gallery_ids)
    wanted = retrieval_metrics(
        *(x.astype(np.float32) for x in rounded), query_ids, gallery_ids
    )
    assert ours == wanted


def test_persons_with_one_match_and_with_many() -> None:
    """Match counts from 1 to 70, so that several padded sizes are used."""
    counts = [1, 1, 2, 7, 9, 17, 33, 70]
    gallery_ids = np.repeat(np.arange(len(counts)), counts)
    query_ids = np.random.default_rng(4).permutation(np.arange(len(counts)).repeat(3))
    similarity = np.random.default_rng(5).normal(size=(24, 140)).astype(np.float32)
    ours = ranked_by(similarity, query_ids, gallery_ids)
    assert_same(ours, oracle_metrics(similarity, query_ids, gallery_ids))


def test_every_item_matches() -> None:
    similarity = np.random.default_rng(6).normal(size=(5, 20)).astype(np.float32)
    ours = ranked_by(similarity, np.ones(5, int), np.ones(20, int))
    assert (ours.r1, ours.mAP, ours.mINP) == (100, 100, 100)


def test_huge_ids() -> None:
    query, gallery, query_ids, gallery_ids = people(30, 40, 5, seed=7)
    huge = np.int64(2**62) + query_ids, np.int64(2**62) + gallery_ids
    ours = retrieval_metrics(query, gallery, *huge)
    assert ours == retrieval_metrics(query, gallery, query_ids, gallery_ids)


def test_unknown_persons_in_the_gallery_only_distract() -> None:
    similarity = np.array([[0.9, 0.8, 0.7]], np.float32)
    ours = ranked_by(similarity, np.array([4]), np.array([-1, 4, -1]))
    assert (ours.r1, ours.r5, ours.mAP) == (0, 100, 50)


@pytest.mark.parametrize("missing", [9, -1])
def test_a_query_without_a_match_is_an_error_by_name(missing: int) -> None:
    query_ids, gallery_ids = np.array([1, 2, missing, missing]), np.array([1, 2, -1])
    with pytest.raises(ValueError, match=rf"query 2 \(person {missing}\).* 2 of 4"):
        ranked_by(np.zeros((4, 3), np.float32), query_ids, gallery_ids)


def test_no_query_is_an_error() -> None:
    nobody = np.zeros(0, int)
    with pytest.raises(ValueError, match="at least one query"):
        ranked_by(np.zeros((0, 3), np.float32), nobody, np.arange(3))


@pytest.mark.parametrize("side", ["query", "gallery"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_an_error(side: str, value: float) -> None:
    query, gallery, query_ids, gallery_ids = people(30, 40, 5, seed=8)
    {"query": query, "gallery": gallery}[side][[11, 20], 3] = value
    with pytest.raises(ValueError, match=rf"finite {side}.* 2 of .* row 11"):
        retrieval_metrics(query, gallery, query_ids, gallery_ids)


def test_features_of_zeros_and_opposite_ones_beside_the_padding() -> None:
    """Padding has the similarity 0: it must not count against 0 or less."""
    query = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]], np.float32)
    gallery = np.array([[-1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], np.float32)
    ranks = match_ranks(query, gallery, np.array([0, 0, 1]), np.array([0, 1, 2]))
    np.testing.assert_array_equal(ranks.ranks, [3, 3, 2])
