# SPDX-License-Identifier: Apache-2.0
r"""An index of drawn people that Qdrant searches, beside exact search of the same rows.

    python -m benchmarks.engine                      # 1,000 people, 4,000 pictures
    python -m benchmarks.engine --uri http://HOST:6333

Without --uri it is the Qdrant that its client has within the process, which compares
all rows: that says whether the same people are found, and nothing of a server's speed.
The sentences are captions of the people; the model is the demo's first.
"""

import os
import random
import tempfile
from pathlib import Path

from benchmarks import common
from data_pipeline.datasets import open_dataset
from data_pipeline.synthetic import write_population
from fmfa_jax import search
from fmfa_jax.search.approximate import recall
from fmfa_jax.search.remote import EMBEDDED

MODEL = "configs/demo_start.safetensors"
TOP = 10


def main() -> None:
    """Print the table."""
    parser = common.parser(__doc__)
    parser.add_argument("--people", type=int, default=1000)
    parser.add_argument("--sentences", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--uri", default=EMBEDDED)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        people = write_population(
            Path(name) / "people",
            workers=os.cpu_count() or 1,
            identities=options.people,
            test_identities=0,
            image_size=(64, 32),
        )
        model = search.open_model(MODEL, tokenizer=str(people / "tokenizer"))
        index = Path(name) / "index"
        search.index_gallery(people, index, model, engine="qdrant", uri=options.uri)
        pairs = open_dataset("cuhk_pedes", str(people)).train.pairs
        captions = [pair.caption for pair in pairs]
        asked = random.Random(0).sample(captions, options.sentences)
        _measure(index, list(model.sentences(asked)), options.repeats)


def _measure(index: Path, queries: list, repeats: int) -> None:
    searcher = search.open_searcher(index)
    finders = {
        "exact": search.ExactSearch(searcher.gallery.shards),
        "qdrant": searcher.find,
    }
    found = {
        name: [find(query, TOP).rows.tolist() for query in queries]
        for name, find in finders.items()
    }
    taken = common.alternate(
        {
            name: lambda find=find: [find(query, TOP) for query in queries]
            for name, find in finders.items()
        },
        repeats=repeats,
    )
    lines = [
        [
            name,
            f"{recall(found[name], [set(rows) for rows in found['exact']]):.4f}",
            common.cell(1e3 * seconds / len(queries)),
            f"{seconds / taken['exact']:.2f}",
        ]
        for name, seconds in taken.items()
    ]
    pictures = sum(len(shard.rows) for shard in searcher.gallery.shards)
    common.show(
        f"{len(queries)} sentences, {pictures} pictures of drawn people",
        ("", f"recall@{TOP}", "ms a query", "x exact"),
        lines,
    )


if __name__ == "__main__":
    main()
