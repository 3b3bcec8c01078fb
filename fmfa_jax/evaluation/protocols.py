# SPDX-License-Identifier: Apache-2.0
"""The protocols that this field compares by, each from an opened run to rows."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.records import PersonDataset, Split
from data_pipeline.synthetic import people_of
from fmfa_jax.evaluation.attributes import Groups, by_person, by_words
from fmfa_jax.evaluation.encode import SplitFeatures
from fmfa_jax.evaluation.hubness import (
    CORRECTIONS,
    Correction,
    bank_bias,
    corrected_ranks,
)
from fmfa_jax.evaluation.incomplete import HidingTokenizer
from fmfa_jax.evaluation.metrics import RetrievalMetrics, summarize
from fmfa_jax.evaluation.published import Published, published
from fmfa_jax.evaluation.ranks import MatchRanks, match_ranks
from fmfa_jax.evaluation.rerank import Reciprocal, reranked
from fmfa_jax.evaluation.runs import Run
from fmfa_jax.evaluation.sentences import joined_queries
from fmfa_jax.evaluation.similarity_distribution import (
    RANKED,
    RELEASED,
    mean_similarity_distribution,
)
from fmfa_jax.evaluation.tables import FIGURES, SIZES, Cell, Table, figures, sizes

SHARES = (0, 10, 20, 30, 40, 50)
"""Percent of a caption's words that `incomplete` hides."""
MOST_SENTENCES = 10
"""Sentences for a query that `sentences` goes up to."""

Row = tuple[Cell, ...]


@dataclass(frozen=True)
class Subject:
    """A run before the split of a data set that it is measured on."""

    run: Run
    data: PersonDataset
    split: Split

    @cached_property
    def features(self) -> SplitFeatures:
        """Features of the split."""
        return self.run.features(self.split)

    @cached_property
    def ranks(self) -> MatchRanks:
        """Ranks of the captions' matches by cosine."""
        return match_ranks(*self.sides)

    @property
    def sides(self) -> tuple[np.ndarray, ...]:
        """Features of queries and gallery, then their persons."""
        f = self.features
        return f.text, f.image, f.text_person, f.image_person


@dataclass(frozen=True)
class Protocol:
    """How a subject is measured, and what its table says.

    Attributes:
        measure: Yields rows: a cell for each label, then for each figure.
        labels: Columns that name a row, after the data set.
        notes: Sentences below the table.
        figures: Columns of what is measured.
        lines: See `Table`.
    """

    measure: Callable[..., Iterator[Row]]
    labels: tuple[str, ...]
    notes: tuple[str, ...] = ()
    figures: tuple[str, ...] = (*FIGURES, *SIZES)
    lines: bool = False

    def table(self, subjects: Sequence[Subject], title: str, **options: Any) -> Table:
        """Measure each subject; see `Table`."""
        rows = tuple(
            (f"{subject.data.name} {subject.split.name}", *row)
            for subject in subjects
            for row in self.measure(subject, **options)
        )
        labels = ("data set", *self.labels)
        return Table(title, labels, self.figures, rows, self.notes, self.lines)


def cross_domain(subject: Subject) -> Iterator[Row]:
    """Measure one model on any data set, beside what is published for the direction."""
    metrics = summarize(subject.ranks)
    yield "this model", *_cells(metrics)
    known = published(
        subject.data.name if subject.split.name == "test" else "",
        queries=metrics.queries,
        gallery=metrics.gallery,
        trained_on=subject.run.trained_on,
    )
    for row in known:
        yield f"{row.method} [{row.source}]", *_cells(row)


def incomplete(subject: Subject, *, seed: int, way: str) -> Iterator[Row]:
    """Hide 0 to 50 percent of each caption's words; see `HidingTokenizer`."""
    image, image_person = subject.run.images(subject.split)
    for share in SHARES:
        reader = HidingTokenizer(subject.run.tokenizer, share / 100, seed, way)
        text, person = subject.run.texts(subject.split, reader)
        ranks = match_ranks(text, image, person, image_person)
        yield share, *_cells(summarize(ranks))


def attributes(subject: Subject, *, by: str) -> Iterator[Row]:
    """Measure the captions that speak of each attribute, in the whole gallery."""
    yield "all", "", *_cells(summarize(subject.ranks))
    for (attribute, value), chosen in _groups(subject, by).items():
        if chosen.any():
            yield attribute, value, *_cells(summarize(subject.ranks.of(chosen)))


def sentences(subject: Subject) -> Iterator[Row]:
    """Join the first sentences about each picture into one query."""
    text, image, _, image_person = subject.sides
    yield "1, each alone", *_cells(summarize(subject.ranks))
    most = int(np.bincount(subject.split.pair_images).max())
    for count in range(1, min(most, MOST_SENTENCES) + 1):
        joined, pictures = joined_queries(text, subject.split.pair_images, count)
        ranks = match_ranks(joined, image, image_person[pictures], image_person)
        yield f"the first {count}", *_cells(summarize(ranks))


def hubness(
    subject: Subject, *, k: int | None, alpha: float | None, bank: str
) -> Iterator[Row]:
    """Correct hubs by a bank of sentences; see `fmfa_jax.evaluation.hubness`."""
    chosen = _correction(subject.data.name, k, alpha)
    if bank == "train" and not subject.data.train.pairs:
        raise ValueError(
            f"data set {subject.data.name!r} at {subject.data.root} has no training "
            "captions, which are the bank"
        )
    text, image, *_ = subject.sides
    yield "cosine", *_cells(summarize(subject.ranks))
    sentences = text if bank == "test" else subject.run.texts(subject.data.train)[0]
    bias = bank_bias(image, sentences, chosen.k)
    ranks = corrected_ranks(*subject.sides, penalty=chosen.alpha * bias)
    name = "corrected" if bank == "train" else "transductive"
    how = f"{name} by {len(sentences)} {subject.split.name if bank == 'test' else bank}"
    label = f"{how} captions, k={chosen.k}, alpha={chosen.alpha:g}"
    yield label, *_cells(summarize(ranks))


def rerank(subject: Subject, *, options: Reciprocal) -> Iterator[Row]:
    """Re-rank by k-reciprocal neighbours; see `fmfa_jax.evaluation.rerank`."""
    yield "cosine", *_cells(summarize(subject.ranks))
    ranks = reranked(*subject.sides, options)
    sizes = f"k1={options.k1}, k2={options.k2}, lambda={options.weight:g}"
    yield f"transductive: re-ranked, {sizes}", *_cells(summarize(ranks))


def msd(subject: Subject) -> Iterator[Row]:
    """Measure mSD beside the usual figures."""
    values = (
        mean_similarity_distribution(*subject.sides, order=order)
        for order in (RANKED, RELEASED)
    )
    metrics = summarize(subject.ranks)
    yield "this model", *figures(metrics), *values, *sizes(metrics)


PROTOCOLS = {
    "cross-domain": Protocol(
        cross_domain,
        ("model",),
        notes=(
            "Published rows stand beside a whole test split only, and are from models "
            "that learned from the same data set as this one, or from the measured one "
            "where nothing says what this one learned from.",
        ),
    ),
    "incomplete": Protocol(
        incomplete,
        ("words hidden, %",),
        notes=(
            "Which words are hidden is a function of the seed and the caption; what "
            "10 % hides, 20 % hides too.",
        ),
        lines=True,
    ),
    "attributes": Protocol(
        attributes,
        ("attribute", "value"),
        notes=(
            "Each row: the captions of that group in the whole gallery. Groups "
            "overlap; one that no caption is of has no row.",
        ),
    ),
    "sentences": Protocol(
        sentences,
        ("sentences for a query",),
        notes=(
            "A query is the mean of the unit features of the first sentences about a "
            "picture, which is itself in the gallery; a picture with fewer gives all.",
        ),
    ),
    "hubness": Protocol(
        hubness,
        ("scores",),
        notes=(
            "The bank sees no test query, unless the row is called transductive: then "
            "the captions to be found by correct each other's scores.",
        ),
    ),
    "rerank": Protocol(
        rerank,
        ("scores",),
        notes=(
            "Transductive: the captions to be found by are neighbours of each other.",
        ),
    ),
    "msd": Protocol(
        msd,
        ("model",),
        notes=(
            "mSD weighs in the order of the ranking. The authors' released code takes "
            "similarities in the gallery's own order instead.",
        ),
        figures=(*FIGURES, "mSD", "mSD, released code", *SIZES),
    ),
}


def _cells(metrics: RetrievalMetrics | Published) -> Row:
    return *figures(metrics), *sizes(metrics)


def _groups(subject: Subject, by: str) -> Groups:
    drawn = subject.data.name == "synthetic"
    if by == "words" or (by == "auto" and not drawn):
        return by_words(subject.split.captions)
    if not drawn:
        raise ValueError(
            f"--by drawn: wanted drawn people (synthetic), got {subject.data.name}"
        )
    # The population's folder is around that of its pictures.
    return by_person(subject.split, people_of(Path(subject.data.root).parent))


def _correction(dataset: str, k: int | None, alpha: float | None) -> Correction:
    known = CORRECTIONS.get(dataset)
    if known is None and (k is None or alpha is None):
        raise ValueError(
            f"hubness on {dataset}: wanted --k and --alpha, since values are known "
            f"only for {', '.join(CORRECTIONS)}; choose them on val (--split val)"
        )
    k = known.k if k is None else k
    return Correction(k, known.alpha if alpha is None else alpha)
