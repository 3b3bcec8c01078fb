# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a split in one call: encode, measure both directions, write."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import jax
import numpy as np
from jax.sharding import Mesh

from data_pipeline.loader import gallery_batches, query_batches
from data_pipeline.records import UNKNOWN_PERSON, Split
from data_pipeline.tokenizer import Tokenizer
from fmfa_jax.evaluation.encode import (
    EncodeImages,
    EncodeTexts,
    SplitFeatures,
    encode_split,
)
from fmfa_jax.evaluation.metrics import Evaluation, retrieval_metrics, summarize
from fmfa_jax.evaluation.nearest import nearest
from fmfa_jax.evaluation.ranks import MatchRanks, match_ranks
from fmfa_jax.evaluation.report import report_folder, write_rankings, write_report

TOP = 10
"""Number of images that rankings.csv and ranking figures show for each query."""


@dataclass(frozen=True)
class EvaluatedSplit:
    """The result of an evaluation, and what figures are drawn from.

    Attributes:
        evaluation: Metrics of both directions.
        features: Features of the split.
        ranks: Ranks of the captions' matches.
    """

    evaluation: Evaluation
    features: SplitFeatures
    ranks: MatchRanks


def evaluate(
    encode_images: EncodeImages,
    encode_texts: EncodeTexts,
    split: Split,
    *,
    tokenizer: Tokenizer,
    image_size: tuple[int, int],
    context_length: int,
    batch_size: int,
    folder: str | Path | None = None,
    step: int = 0,
    dataset: str = "",
    mesh: Mesh | None = None,
    parts: Mapping[str, slice] = MappingProxyType({}),
) -> EvaluatedSplit:
    """Measure retrieval on a split, and write a report if `folder` is given.

    Every process must call this and gets the same result; process 0 writes.

    Args:
        encode_images: Maps uint8 images [b,h,w,3] to features [b,d]; jitted by the
            caller.
        encode_texts: Maps int32 token ids [b,l] to features [b,d]; likewise.
        split: Its captions are the queries, its images the gallery.
        tokenizer: Tokenizer for the captions.
        image_size: (height, width).
        context_length: Number of text positions.
        batch_size: Rows over all processes and devices.
        folder: Run folder. metrics.json, table.md and rankings.csv are written to
            eval/<step>/ in it (eval/<step>-<split>/ unless the split is "test").
        step: Training step of the weights.
        dataset: Name of the data set, to list published numbers for comparison.
        mesh: Devices of all processes to share the work.
        parts: Columns of the features that are measured apart as well, by name.

    Raises:
        ValueError: No image shows the person of a caption, features are not finite, or
            a batch does not divide evenly over the devices.
    """
    share = {
        "batch_size": batch_size,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }
    features = encode_split(
        encode_images,
        encode_texts,
        gallery_batches(split, image_size=image_size, **share),
        query_batches(
            split, tokenizer=tokenizer, context_length=context_length, **share
        ),
        mesh=mesh,
    )
    evaluation, ranks = measure(features, mesh=mesh, parts=parts)
    if folder is not None and jax.process_index() == 0:
        target = report_folder(folder, step, split.name)
        write_report(target, evaluation, step=step, split=split.name, dataset=dataset)
        top = nearest(features.text, features.image, TOP)
        write_rankings(target / "rankings.csv", split, top, ranks.first)
    return EvaluatedSplit(evaluation, features, ranks)


def measure(
    features: SplitFeatures,
    *,
    mesh: Mesh | None = None,
    parts: Mapping[str, slice] = MappingProxyType({}),
) -> tuple[Evaluation, MatchRanks]:
    """Measure both directions; also return the ranks of the captions' matches.

    Images of people whom no caption describes stay in the gallery but are not queries;
    the number of image-to-text queries shows how many remain. Of parts of the features
    text to image is measured alone.
    """
    persons = features.text_person, features.image_person
    ranks = match_ranks(features.text, features.image, *persons, mesh=mesh)
    asked = np.isin(features.image_person, features.text_person)
    asked &= features.image_person != UNKNOWN_PERSON
    i2t = retrieval_metrics(
        features.image[asked],
        features.text,
        features.image_person[asked],
        features.text_person,
        mesh=mesh,
    )
    apart = {
        name: retrieval_metrics(
            features.text[:, part], features.image[:, part], *persons, mesh=mesh
        )
        for name, part in parts.items()
    }
    return Evaluation(t2i=summarize(ranks), i2t=i2t, parts=apart), ranks
