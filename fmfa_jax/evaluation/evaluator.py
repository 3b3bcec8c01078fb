# SPDX-License-Identifier: Apache-2.0
"""One call: encode a split, measure both directions, write everything down."""

from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from data_pipeline.loader import gallery_batches, query_batches
from data_pipeline.records import UNKNOWN_PERSON, Split
from data_pipeline.tokenizer import Tokenizer
from fmfa_jax.evaluation.embed import Embeddings, ImageEncoder, TextEncoder, embed
from fmfa_jax.evaluation.metrics import Evaluation, retrieval_metrics, summarize
from fmfa_jax.evaluation.nearest import nearest
from fmfa_jax.evaluation.ranks import MatchRanks, match_ranks
from fmfa_jax.evaluation.report import report_folder, write_rankings, write_report

TOP = 10
"""How many pictures of each query rankings.csv and the ranking pictures show."""


def evaluate(
    encode_image: ImageEncoder,
    encode_text: TextEncoder,
    split: Split,
    *,
    tokenizer: Tokenizer,
    image_size: tuple[int, int],
    context_length: int,
    batch_size: int,
    folder: str | Path | None = None,
    step: int = 0,
    dataset: str = "",
    pictures: int = 0,
    mesh: Mesh | None = None,
) -> Evaluation:
    """Measure retrieval on a split, and write eval/<step>/ where a folder is given.

    Every process calls it and gets the same answer; process 0 writes.

    Args:
        encode_image: uint8 [b,h,w,3] -> features [b,d]; jitted by the caller.
        encode_text: int32 [b,l] -> features [b,d].
        split: captions are the queries, pictures the gallery.
        tokenizer: of the captions.
        image_size: (height, width).
        context_length: text positions.
        batch_size: rows over all processes and devices.
        folder: the run's folder. There metrics.json, table.md and rankings.csv go
            into eval/<step>/ (eval/<step>-<split>/ unless the split is "test").
        step: training steps that the weights had.
        dataset: its name, to set published numbers beside the result.
        pictures: how many ranking_*.png to draw; more than 0 also draws the worst
            failures, the similarities and the map of the features.
        mesh: devices of all processes that share the work.

    Raises:
        ValueError: a caption without a picture of its person, features that are not
            finite, a batch that does not divide.
    """
    share = {
        "batch_size": batch_size,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }
    features = embed(
        encode_image,
        encode_text,
        gallery_batches(split, image_size=image_size, **share),
        query_batches(
            split, tokenizer=tokenizer, context_length=context_length, **share
        ),
        mesh=mesh,
    )
    evaluation, ranks = measure(features, mesh=mesh)
    if folder is not None and jax.process_index() == 0:
        target = report_folder(folder, step, split.name)
        write_report(target, evaluation, step=step, split=split.name, dataset=dataset)
        _write_details(target, split, features, ranks, pictures=pictures)
    return evaluation


def measure(
    features: Embeddings, *, mesh: Mesh | None = None
) -> tuple[Evaluation, MatchRanks]:
    """Measure both directions; also return the ranks of the captions' matches.

    A picture of somebody whom no caption describes stays in the gallery but asks for
    nothing: the table's number of image-to-text queries says how many do.
    """
    ranks = match_ranks(
        features.text,
        features.image,
        features.text_person,
        features.image_person,
        mesh=mesh,
    )
    asked = np.isin(features.image_person, features.text_person)
    asked &= features.image_person != UNKNOWN_PERSON
    i2t = retrieval_metrics(
        features.image[asked],
        features.text,
        features.image_person[asked],
        features.text_person,
        mesh=mesh,
    )
    return Evaluation(t2i=summarize(ranks), i2t=i2t), ranks


def _write_details(
    folder: Path,
    split: Split,
    features: Embeddings,
    ranks: MatchRanks,
    *,
    pictures: int,
) -> None:
    top = nearest(features.text, features.image, TOP)
    write_rankings(folder / "rankings.csv", split, top, ranks.first)
    if pictures < 1:
        return
    # Imported here: drawing needs packages that measuring does not.
    from fmfa_jax import figures

    figures.write_rankings(
        folder, split, top.index, top.similarity, ranks.first, count=pictures
    )
    text, image = features.text, features.image
    persons = features.text_person, features.image_person
    figures.write_similarities(folder / "similarities.png", text, image, *persons)
    figures.write_feature_map(folder / "features.png", text, image, *persons)
