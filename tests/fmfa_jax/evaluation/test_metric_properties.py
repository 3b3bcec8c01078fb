# SPDX-License-Identifier: Apache-2.0
"""What holds of every metric and protocol, for any features: a table and properties."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st

from data_pipeline.synthetic.vocabulary import write_tokenizer
from data_pipeline.tokenizer import open_tokenizer
from fmfa_jax.evaluation import retrieval_metrics, summarize
from fmfa_jax.evaluation.hubness import bank_bias, corrected_ranks
from fmfa_jax.evaluation.incomplete import WAYS, HidingTokenizer
from fmfa_jax.evaluation.nearest import nearest
from fmfa_jax.evaluation.ranks import match_ranks
from fmfa_jax.evaluation.rerank import Reciprocal, reranked
from fmfa_jax.evaluation.sentences import joined_queries
from fmfa_jax.evaluation.similarity_distribution import (
    RANKED,
    RELEASED,
    mean_similarity_distribution,
)
from tests.fmfa_jax.evaluation.test_metrics import oracle_metrics, ranked_by
from tests.properties import TRIES, features, holds

Q, G, D, BANK = 8, 12, 4, 10
SMALL = Reciprocal(k1=4, k2=2)


@dataclass(frozen=True)
class Sides:
    """Features of captions and pictures, whose they are, and a bank of sentences."""

    text: np.ndarray
    image: np.ndarray
    text_person: np.ndarray
    image_person: np.ndarray
    bank: np.ndarray

    @property
    def all(self) -> tuple[np.ndarray, ...]:
        return self.text, self.image, self.text_person, self.image_person


@dataclass(frozen=True)
class Measure:
    """What a protocol makes of the two sides.

    Attributes:
        of: To figures in percent.
        crowded: Depends on how much is alike in the gallery, so that ties, which are
            broken by place, move it.
        listed: Depends on how the gallery is listed, by its definition.
        some: Needs a picture of another person for each query.
    """

    of: Callable[[Sides], list[float]]
    crowded: bool = False
    listed: bool = False
    some: bool = False


def told(metrics) -> list[float]:
    return [metrics.r1, metrics.r5, metrics.r10, metrics.mAP, metrics.mINP]


def usual(sides: Sides) -> list[float]:
    return told(retrieval_metrics(*sides.all))


def less_hubs(sides: Sides) -> list[float]:
    penalty = 0.7 * bank_bias(sides.image, sides.bank, 3)
    return told(summarize(corrected_ranks(*sides.all, penalty=penalty)))


def again(sides: Sides) -> list[float]:
    return told(summarize(reranked(*sides.all, SMALL)))


def joined(sides: Sides) -> list[float]:
    """Captions two by two, each two about a picture of the first one's person."""
    asked = [int(np.flatnonzero(sides.image_person == p)[0]) for p in sides.text_person]
    text, pictures = joined_queries(sides.text, np.array(asked), 2)
    person = sides.image_person[pictures]
    found = match_ranks(text, sides.image, person, sides.image_person)
    return [100 * float(np.mean(found.average_precision))]


def attributes(sides: Sides) -> list[float]:
    """Those captions whose features point to one side, in the whole gallery."""
    chosen = sides.text[:, 0] > 0
    ranks = match_ranks(*sides.all)
    return told(summarize(ranks.of(chosen))) if chosen.any() else [0.0]


def distribution(sides: Sides, order: str) -> list[float]:
    return [mean_similarity_distribution(*sides.all, order=order)]


MEASURES = {
    "usual": Measure(usual),
    "hubness": Measure(less_hubs),
    "rerank": Measure(again, crowded=True),
    "attributes": Measure(attributes),
    # Whichever two captions come first.
    "sentences": Measure(joined, listed=True),
    "msd": Measure(partial(distribution, order=RANKED), some=True),
    "msd released": Measure(
        partial(distribution, order=RELEASED), listed=True, some=True
    ),
}
ANY = pytest.mark.parametrize("name", MEASURES)


@st.composite
def sides(draw: st.DrawFn, *, others: bool = False) -> Sides:
    """Every caption has a picture of its person; unknown people are in the gallery."""
    ids = draw(st.lists(st.integers(0, 4), min_size=G, max_size=G))
    people = np.array(draw(st.sampled_from([ids, [0] * G, list(range(G))])))
    if others:
        people[-1] = 99
    asked = st.integers(0, G - 2 if others else G - 1)
    chosen = draw(st.lists(asked, min_size=Q, max_size=Q))
    text_person = people[chosen]
    strangers = draw(st.lists(st.booleans(), min_size=G, max_size=G))
    unknown = np.array(strangers) & ~np.isin(people, text_person)
    return Sides(
        draw(features(Q, D)),
        draw(features(G, D)),
        text_person,
        np.where(unknown, -1, people),
        draw(features(BANK, D)),
    )


def distinct(found: Sides) -> Sides:
    """The same with a little noise: no two cosines are equal."""
    rng = np.random.default_rng(0)

    def noisy(rows: np.ndarray) -> np.ndarray:
        size = np.abs(rows).max() or 1
        noise = rng.normal(size=rows.shape)
        return (rows + 0.1 * size * noise).astype(np.float32)

    parts = {"text": found.text, "image": found.image, "bank": found.bank}
    return replace(found, **{key: noisy(rows) for key, rows in parts.items()})


def assert_close(got: list[float], want: list[float]) -> None:
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@TRIES
@ANY
def test_figures_are_percent_in_any_float_type(name, tries):
    measure = MEASURES[name]

    def check(found):
        narrow = replace(
            found,
            text=found.text.astype(ml_dtypes.bfloat16),
            image=found.image.astype(ml_dtypes.bfloat16),
        )
        for each in (found, narrow):
            values = measure.of(each)
            assert np.isfinite(values).all()
            assert min(values) >= 0 and max(values) <= 100 + 1e-9

    holds(check, tries, found=sides(others=measure.some))


@TRIES
@ANY
def test_the_order_of_captions_and_pictures_does_not_matter(name, tries):
    measure = MEASURES[name]
    if measure.listed:
        pytest.skip("by its definition it does")

    def check(found, queries, gallery):
        found = distinct(found) if measure.crowded else found
        queries, gallery = list(queries), list(gallery)
        moved = Sides(
            found.text[queries],
            found.image[gallery],
            found.text_person[queries],
            found.image_person[gallery],
            found.bank[::-1],
        )
        assert_close(measure.of(moved), measure.of(found))

    orders = {
        "queries": st.permutations(range(Q)),
        "gallery": st.permutations(range(G)),
    }
    holds(check, tries, found=sides(others=measure.some), **orders)


@TRIES
@ANY
def test_lengths_of_features_and_names_of_people_do_not_matter(name, tries):
    measure = MEASURES[name]

    def check(found, lengths, shift):
        scale = np.float32(2.0) ** np.array(lengths, np.float32)[:, None]
        known = found.image_person >= 0
        other = Sides(
            found.text * scale[:Q],
            found.image * scale[Q:],
            found.text_person + shift,
            np.where(known, found.image_person + shift, -1),
            found.bank * 4,
        )
        assert_close(measure.of(other), measure.of(found))

    holds(
        check,
        tries,
        found=sides(others=measure.some),
        lengths=st.lists(st.integers(-8, 8), min_size=Q + G, max_size=Q + G),
        shift=st.integers(0, 2**40),
    )


@TRIES
def test_any_ties_are_ranked_as_a_sort_ranks_them(tries):
    def check(found, levels, seed):
        rng = np.random.default_rng(seed)
        similarity = rng.integers(0, levels, (Q, G)).astype(np.float32)
        people = found.text_person, found.image_person
        ours = ranked_by(similarity, *people).as_dict()
        assert ours == pytest.approx(oracle_metrics(similarity, *people).as_dict())

    holds(
        check,
        tries,
        found=sides(),
        levels=st.integers(1, 5),
        seed=st.integers(0, 2**32 - 1),
    )


@TRIES
def test_the_usual_figures_are_in_order_and_one_person_is_always_found(tries):
    def check(found):
        r1, r5, r10, _, _ = usual(found)
        assert r1 <= r5 <= r10
        alone = replace(
            found,
            text_person=np.zeros(Q, int),
            image_person=np.zeros(G, int),
        )
        assert usual(alone) == [100] * 5

    holds(check, tries, found=sides())


@TRIES
def test_a_correction_of_nothing_and_a_full_weight_are_the_cosine(tries):
    def check(found):
        found = distinct(found)
        want = match_ranks(*found.all).ranks
        nothing = np.zeros(G, np.float32)
        got = corrected_ranks(*found.all, penalty=nothing).ranks
        np.testing.assert_array_equal(got, want)
        whole = replace(SMALL, weight=1.0)
        np.testing.assert_array_equal(reranked(*found.all, whole).ranks, want)

    holds(check, tries, found=sides())


@TRIES
def test_the_nearest_are_a_sort(tries):
    def check(found, k):
        got = nearest(found.text, found.image, k)
        assert got.index.shape == (Q, min(k, G))
        every = nearest(found.text, found.image, G)
        np.testing.assert_array_equal(np.sort(every.index, 1), [np.arange(G)] * Q)
        np.testing.assert_array_equal(got.similarity, every.similarity[:, :k])
        assert (np.diff(every.similarity, axis=1) <= 0).all()

    holds(check, tries, found=sides(), k=st.sampled_from([1, 5, 99]))


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    """A small tokenizer, and by way and share those that hide words from it."""
    folder = tmp_path_factory.mktemp("words") / "tokenizer"
    write_tokenizer(folder)
    tokenizer = open_tokenizer(str(folder))
    hiding = {
        way: [HidingTokenizer(tokenizer, share, way=way) for share in (0.0, 0.3, 1.0)]
        for way in WAYS
    }
    return tokenizer, hiding


@TRIES
@pytest.mark.parametrize("way", WAYS)
def test_hidden_words_are_nested_and_any_caption_keeps_its_frame(readers, way, tries):
    tokenizer, hiding = readers

    def check(caption):
        whole = tokenizer.encode([caption], 16)[0]
        rows = [reader.encode([caption], 16)[0] for reader in hiding[way]]
        np.testing.assert_array_equal(rows[0], whole)
        for row in rows:
            assert row[0] == tokenizer.start_id and tokenizer.end_id in row
        if way == "mask":
            none, some, every = (set(np.flatnonzero(row != whole)) for row in rows)
            assert not none and some <= every

    text = st.text("a man in red&!é1 ", max_size=40) | st.text(max_size=20)
    holds(check, tries, caption=text | st.sampled_from(["", "a man, in red & blue"]))
