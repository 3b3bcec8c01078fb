# SPDX-License-Identifier: Apache-2.0
"""Each protocol's function against its definition, written out slowly."""

import math
from itertools import pairwise

import numpy as np
import pytest

from data_pipeline.records import Pair, Picture, Split
from data_pipeline.synthetic import identity_attributes
from data_pipeline.tokenizer import open_tokenizer
from fmfa_jax.evaluation import rerank, summarize
from fmfa_jax.evaluation.attributes import WORDS, by_person, by_words
from fmfa_jax.evaluation.hubness import bank_bias, corrected_ranks
from fmfa_jax.evaluation.incomplete import HidingTokenizer
from fmfa_jax.evaluation.published import CROSS_DOMAIN, TEST_SIZES, published
from fmfa_jax.evaluation.ranks import match_ranks, score_ranks
from fmfa_jax.evaluation.rerank import Reciprocal, reranked
from fmfa_jax.evaluation.sentences import joined_queries
from fmfa_jax.evaluation.similarity_distribution import (
    RANKED,
    RELEASED,
    mean_similarity_distribution,
)

QUERIES, PICTURES, PERSONS, WIDTH = 23, 34, 7, 8
CAPTIONS = (
    "A man, who wears a green t-shirt & blue jeans, walks past.",
    "the woman carries an umbrella",
    "red",
    "!!!",
    "",
)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def sides() -> tuple[np.ndarray, ...]:
    """Features of captions and pictures around people, and whose they are."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(PERSONS, WIDTH))
    gallery_ids = rng.permutation(np.arange(PICTURES) % PERSONS)
    query_ids = rng.integers(0, PERSONS, QUERIES)
    text, image = (
        (centres[ids] + rng.normal(size=(len(ids), WIDTH))).astype(np.float32)
        for ids in (query_ids, gallery_ids)
    )
    return text, image, query_ids, gallery_ids


def assert_ranked(ranks, scores: np.ndarray, sides: tuple[np.ndarray, ...]) -> None:
    """The ranks are those of a sort of each row; among equals the wrong come first."""
    *_, query_ids, gallery_ids = sides
    for number, (row, person) in enumerate(zip(scores, query_ids, strict=True)):
        right = gallery_ids == person
        wanted = np.flatnonzero(right[np.lexsort((right, -row))]) + 1
        own = slice(ranks.offsets[number], ranks.offsets[number + 1])
        np.testing.assert_array_equal(ranks.ranks[own], wanted)


@pytest.mark.parametrize("levels", [3, 10**6])
def test_scores_are_ranked_as_a_sort_does(sides, levels):
    scores = np.random.default_rng(1).integers(-levels, 0, (QUERIES, PICTURES))
    scores = scores.astype(np.float32)
    assert_ranked(score_ranks(lambda rows: scores[rows], *sides[2:]), scores, sides)


def test_scores_that_are_not_finite_are_refused(sides):
    scores = np.zeros((QUERIES, PICTURES), np.float32)
    scores[-1, -1] = np.nan
    with pytest.raises(ValueError, match="finite scores"):
        score_ranks(lambda rows: scores[rows], *sides[2:])


def test_some_queries_are_measured_as_if_alone(sides):
    text, image, query_ids, gallery_ids = sides
    chosen = query_ids % 2 == 0
    alone = match_ranks(text[chosen], image, query_ids[chosen], gallery_ids)
    assert summarize(match_ranks(*sides).of(chosen)) == summarize(alone)


@pytest.mark.parametrize("k", [1, 5])
def test_hubness_is_the_mean_of_the_nearest_sentences(sides, k):
    text, image, *_ = sides
    bank = np.random.default_rng(2).normal(size=(11, WIDTH)).astype(np.float32)
    cosines = unit(image) @ unit(bank).T
    bias = np.array([np.mean(sorted(row)[-k:]) for row in cosines])
    np.testing.assert_allclose(bank_bias(image, bank, k), bias, atol=1e-6)
    ranks = corrected_ranks(*sides, penalty=np.float32(0.7) * bank_bias(image, bank, k))
    assert_ranked(ranks, unit(text) @ unit(image).T - 0.7 * bias, sides)
    plain = corrected_ranks(*sides, penalty=np.zeros(PICTURES, np.float32))
    np.testing.assert_array_equal(plain.ranks, match_ranks(*sides).ranks)


def test_a_bank_must_have_k_sentences(sides):
    with pytest.raises(ValueError, match="from 1 to the bank's 23 sentences, got 24"):
        bank_bias(sides[1], sides[0], 24)


def final_distance(text: np.ndarray, image: np.ndarray, o: Reciprocal) -> np.ndarray:
    """The paper's equations with the code's choices, item by item, all dense."""
    everything = unit(np.concatenate([text, image]).astype(np.float64))
    n = len(everything)
    distance = np.array(
        [[((x - y) ** 2).sum() for y in everything] for x in everything]
    )
    distance /= distance.max(axis=1, keepdims=True)
    order = np.argsort(distance, axis=1, kind="stable")

    def near(x: int, k: int) -> list[int]:
        return order[x, : k + 1].tolist()

    def mutual(x: int, k: int) -> set[int]:
        return {y for y in near(x, k) if x in near(y, k)}

    vectors = np.zeros((n, n))
    for x in range(n):
        members = mutual(x, o.k1)
        for y in mutual(x, o.k1):
            half = mutual(y, int(np.around(o.k1 / 2)))
            if len(half & mutual(x, o.k1)) > 2 / 3 * len(half):
                members |= half
        for y in members:
            vectors[x, y] = math.exp(-distance[x, y])
        vectors[x] /= vectors[x].sum()
    vectors = np.array([vectors[order[x, : o.k2]].mean(axis=0) for x in range(n)])
    final = np.empty((len(text), len(image)))
    for q in range(len(text)):
        for g in range(len(image)):
            a, b = vectors[q], vectors[len(text) + g]
            jaccard = 1 - np.minimum(a, b).sum() / np.maximum(a, b).sum()
            own = distance[q, len(text) + g]
            final[q, g] = (1 - o.weight) * jaccard + o.weight * own
    return final


@pytest.mark.parametrize(
    "options",
    [Reciprocal(8, 3), Reciprocal(5, 1, 0.5), Reciprocal(6, 6, 0.1), Reciprocal(70, 2)],
)
def test_reranking_follows_the_equations(sides, options, monkeypatch):
    monkeypatch.setattr(rerank, "_ROWS_AT_ONCE", 10)
    final = final_distance(sides[0], sides[1], options)
    gaps = np.diff(np.sort(final, axis=1), axis=1)
    assert gaps.min() > 1e-6  # so that float32 cannot swap two pictures
    assert_ranked(reranked(*sides, options), -final, sides)


def test_reranking_refuses_what_does_not_fit(sides, monkeypatch):
    with pytest.raises(ValueError, match="k2 from 1 to k1"):
        Reciprocal(2, 4)
    assert Reciprocal().bytes(2 * 19848, 512) < rerank.LIMIT_BYTES  # ICFG-PEDES
    monkeypatch.setattr(rerank, "LIMIT_BYTES", 10_000)
    with pytest.raises(
        ValueError, match=r"23 captions and 34 pictures may need .* --k1"
    ):
        reranked(*sides, Reciprocal())


def slow_msd(sides: tuple[np.ndarray, ...], order: str) -> float:
    """The measure query by query and match by match."""
    text, image, query_ids, gallery_ids = sides
    found = []
    for row, person in zip(unit(text) @ unit(image).T, query_ids, strict=True):
        right = [g == person for g in gallery_ids]
        places = sorted(range(len(row)), key=lambda g: (-row[g], right[g]))
        hits = [right[g] for g in places]
        values = [
            (1 + row[g if order == RELEASED else places[g]]) / 2
            for g in range(len(row))
        ]
        good = [v for v, hit in zip(values, hits, strict=True) if hit]
        bad = [v for v, hit in zip(values, hits, strict=True) if not hit]
        parts = [
            sum(v for v, h in zip(values[: at + 1], hits, strict=False) if h)
            / sum(values[: at + 1])
            for at, hit in enumerate(hits)
            if hit
        ]
        ratio = (sum(good) / len(good)) / (sum(bad) / len(bad))
        found.append(sum(parts) / len(parts) * (1 - math.exp(-ratio)))
    return 100 * sum(found) / len(found)


@pytest.mark.parametrize("order", [RANKED, RELEASED])
def test_msd_is_what_its_authors_define(sides, order):
    ours = mean_similarity_distribution(*sides, order=order)
    assert ours == pytest.approx(slow_msd(sides, order), abs=1e-4)


def test_msd_by_hand():
    """Cosines 1, 0, -1 of a match, another and a match: s = 1, .5, 0."""
    text = np.array([[1, 0]], np.float32)
    image = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    ids = np.array([5]), np.array([5, 6, 5])
    share = (1 + 1 / 1.5) / 2
    wanted = 100 * share * (1 - math.exp(-(0.5 / 0.5)))
    assert mean_similarity_distribution(text, image, *ids) == pytest.approx(wanted)
    # In the gallery's own order a listing from the back makes another value of it.
    turned = text, image[::-1], ids[0], ids[1][::-1]
    assert mean_similarity_distribution(*turned) == pytest.approx(wanted)
    released = mean_similarity_distribution(*turned, order=RELEASED)
    assert released != pytest.approx(wanted, rel=0.1)


def test_msd_wants_others_to_compare_with():
    rows, ids = np.eye(2, dtype=np.float32), np.zeros(2, int)
    with pytest.raises(ValueError, match="another picture"):
        mean_similarity_distribution(rows, rows, ids, ids)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_sentences_are_joined_picture_by_picture(sides, count):
    text = sides[0][:7] * np.arange(1, 8, dtype=np.float32)[:, None]
    images = np.array([4, 4, 4, 0, 2, 2, 4])
    joined, asked = joined_queries(text, images, count)
    assert asked.tolist() == [0, 2, 4]
    for row, image in zip(joined, asked, strict=True):
        own = unit(text[images == image][:count])
        np.testing.assert_allclose(row, own.mean(axis=0), atol=1e-6)
    with pytest.raises(ValueError, match="at least 1 sentence"):
        joined_queries(text, images, 0)


@pytest.fixture(scope="module")
def tokenizer():
    return open_tokenizer("clip")


def hidden(tokenizer, caption: str, share: float, seed: int, way: str, length: int):
    """Word by word: which of the words are hidden, then what is left of the ids."""
    (row,) = HidingTokenizer(tokenizer, share, seed, way).encode([caption], length)
    (whole,) = tokenizer.encode([caption], length)
    return whole, row


@pytest.mark.parametrize("caption", CAPTIONS)
@pytest.mark.parametrize("length", [9, 40])
def test_the_hidden_words_are_whole_and_as_many_as_asked(tokenizer, caption, length):
    for share in (0.0, 0.1, 0.5, 1.0):
        whole, row = hidden(tokenizer, caption, share, 3, "mask", length)
        spans = [w for w in tokenizer.words(whole) if any(map(str.isalnum, w.text))]
        gone = [(row[w.start : w.stop] == tokenizer.mask_id).all() for w in spans]
        assert sum(gone) == round(share * len(spans))
        for word, masked in zip(spans, gone, strict=True):
            if masked:
                whole[word.start : word.stop] = tokenizer.mask_id
        np.testing.assert_array_equal(row, whole)
        kept = [i for i in row.tolist() if i != tokenizer.mask_id]
        _, dropped = hidden(tokenizer, caption, share, 3, "drop", length)
        assert dropped.tolist() == kept + [0] * (length - len(kept))


def test_what_is_hidden_depends_on_seed_and_caption_alone(tokenizer):
    reader = HidingTokenizer(tokenizer, 0.5)
    together = reader.encode(CAPTIONS, 40)
    apart = [reader.encode([caption], 40)[0] for caption in reversed(CAPTIONS)]
    np.testing.assert_array_equal(together, apart[::-1])
    other = HidingTokenizer(tokenizer, 0.5, seed=1).encode(CAPTIONS, 40)
    assert (other != together).any()
    masks = [
        HidingTokenizer(tokenizer, share).encode(CAPTIONS, 40) == tokenizer.mask_id
        for share in (0.1, 0.3, 0.5)
    ]
    assert all((more | less == more).all() for less, more in pairwise(masks))


def test_captions_are_grouped_by_whole_words():
    groups = by_words([*CAPTIONS, "A WOMAN in a T-shirt dress", "a manly shirtdress"])
    where = {name: np.flatnonzero(rows).tolist() for name, rows in groups.items()}
    assert where["gender", "man"] == [0]
    assert where["gender", "woman"] == [1, 5]
    assert where["upper", "t-shirt"] == [0, 5]
    assert where["upper", "shirt"] == []  # neither in t-shirt nor in shirtdress
    assert where["upper", "dress"] == [5]
    assert where["held", "umbrella"] == [1]
    assert all(w == w.lower() for v in WORDS.values() for ws in v.values() for w in ws)


def test_drawn_people_are_grouped_by_what_they_were_drawn_from():
    people = dict(enumerate(identity_attributes(0, 6), start=1))
    images = tuple(Picture(f"{i}", "", i) for i in people)
    split = Split("test", images, tuple(Pair(i, "x") for i in (0, 0, 3, 5)))
    groups = by_person(split, people)
    for (attribute, value), rows in groups.items():
        asked = [getattr(people[p], attribute.replace(" ", "_")) for p in (1, 1, 4, 6)]
        assert rows.tolist() == [each == value for each in asked]
    bags = [rows for (attribute, _), rows in groups.items() if attribute == "bag"]
    assert np.sum(bags, axis=0).tolist() == [1, 1, 1, 1]


def test_published_rows_are_of_the_direction():
    sizes = dict(zip(("queries", "gallery"), TEST_SIZES["icfg_pedes"], strict=True))
    rows = published("tfds:icfg_pedes", **sizes, trained_on="cuhk_pedes")
    assert [(r.method, r.r1, r.mAP) for r in rows][-1] == ("ITSELF", 50.58, 27.32)
    assert published("icfg_pedes", **sizes, trained_on="folder") == ()
    own = published("icfg_pedes", **sizes, trained_on="tfds:icfg_pedes")
    assert own == published("icfg_pedes", **sizes)
    assert len(CROSS_DOMAIN) == 6 and all(len(r) == 5 for r in CROSS_DOMAIN.values())
    assert all(
        [x.r1 for x in r] == sorted(x.r1 for x in r) for r in CROSS_DOMAIN.values()
    )
