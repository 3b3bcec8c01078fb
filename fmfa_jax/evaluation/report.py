# SPDX-License-Identifier: Apache-2.0
"""The files that an evaluation writes: metrics.json, table.md, rankings.csv."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from data_pipeline.records import Split
from fmfa_jax.evaluation.metrics import Evaluation
from fmfa_jax.evaluation.nearest import Nearest
from fmfa_jax.evaluation.published import published
from fmfa_jax.evaluation.tables import FIGURES, SIZES, aligned, figures, percent
from fmfa_jax.files import write_json, write_text, writing

HEADER = ("direction", *FIGURES, *SIZES)
_TIES = "a wrong item exactly as similar as a right one counts as ahead of it"


def report_folder(folder: str | Path, step: int, split: str) -> Path:
    """Return FOLDER/eval/STEP for the test split, FOLDER/eval/STEP-SPLIT for others."""
    name = str(step) if split == "test" else f"{step}-{split}"
    return Path(folder) / "eval" / name


def table(evaluation: Evaluation, *, dataset: str = "") -> str:
    """Format both directions as an aligned Markdown table, in percent.

    Parts of the features that were measured apart follow, and published text-to-image
    numbers if the sizes are those of the test split of `dataset`.
    """
    t2i, i2t = evaluation.t2i, evaluation.i2t
    rows: list[Sequence[str]] = [HEADER]
    measured = {"text -> image": t2i, "image -> text": i2t}
    for name, metrics in evaluation.parts.items():
        measured[f"text -> image, {name} alone"] = metrics
    for name, metrics in measured.items():
        cells = map(percent, figures(metrics))
        rows.append((name, *cells, str(metrics.queries), str(metrics.gallery)))
    known = published(dataset, queries=t2i.queries, gallery=t2i.gallery)
    for row in known:
        cells = map(percent, figures(row))
        rows.append((f"{row.method} [published]", *cells, "", ""))
    text = aligned(rows)
    if known:
        sources = "; ".join(f"{row.method}: {row.source}" for row in known)
        text += f"\nPublished, text -> image. {sources}.\n"
    return text


def write_report(
    folder: str | Path,
    evaluation: Evaluation,
    *,
    step: int,
    split: str,
    dataset: str = "",
) -> None:
    """Write metrics.json and table.md.

    Args:
        folder: See `report_folder`; created if missing.
        evaluation: Both directions.
        step: Training step of the weights.
        split: Name of the split.
        dataset: Name of the data set, for published numbers.
    """
    record = {"dataset": dataset, "split": split, "step": step, "ties": _TIES}
    directions = {"t2i": evaluation.t2i.as_dict(), "i2t": evaluation.i2t.as_dict()}
    if evaluation.parts:
        parts = {name: part.as_dict() for name, part in evaluation.parts.items()}
        directions["t2i_parts"] = parts
    write_json(Path(folder) / "metrics.json", record | directions)
    title = f"# {dataset or 'Retrieval'}, {split}, step {step}"
    rows = table(evaluation, dataset=dataset)
    text = f"{title}\n\n{rows}\nIn percent. Ties: {_TIES}.\n"
    write_text(Path(folder) / "table.md", text)


def write_rankings(
    path: str | Path,
    split: Split,
    nearest: Nearest,
    first_match: Int32[np.ndarray, "q"],
) -> None:
    """Write a CSV file with the nearest images of each caption.

    Columns: query (index of the pair), caption, person, first_match_rank, then for each
    of the k nearest images file_K, similarity_K and match_K (1 or 0).

    Args:
        path: The file.
        split: Images and captions that were measured.
        nearest: Nearest images of each caption.
        first_match: Rank of each caption's best match.
    """
    depth = nearest.index.shape[1]
    names = ("file", "similarity", "match")
    columns = [f"{name}_{k}" for k in range(1, depth + 1) for name in names]
    with writing(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["query", "caption", "person", "first_match_rank", *columns])
        for query, pair in enumerate(split.pairs):
            person = int(split.pair_persons[query])
            row = [query, pair.caption, person, int(first_match[query])]
            hits = zip(nearest.index[query], nearest.similarity[query], strict=True)
            for image, similarity in hits:
                picture = split.images[image]
                match = int(picture.person == person)
                row += [picture.file, f"{similarity:.6f}", match]
            writer.writerow(row)
