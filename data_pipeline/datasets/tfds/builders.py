# SPDX-License-Identifier: Apache-2.0
"""TFDS builders on top of the same readers: shards for pods with the same records.

    python -m data_pipeline.datasets.tfds cuhk_pedes --manual_dir=ROOT --data_dir=OUT

or, from the checkout, if apache-beam and mlcroissant are installed (the `tfds` script
imports them before it looks at its command):

    PYTHONPATH=. tfds build cuhk_pedes --imports=data_pipeline.datasets.tfds.builders \
        --manual_dir=ROOT --data_dir=OUT --file_format=array_record

An example is one picture: its encoded bytes as in the file, the file's name, the person
and the captions. The annotation is also written once as metadata.json, so that opening
a prepared data set reads no pictures. Examples keep the annotation's order: example i
of a split is picture i of the Split.
"""

from collections.abc import Iterator
from dataclasses import astuple
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data_pipeline.datasets import READERS
from data_pipeline.datasets.annotations import Entry, entries_of
from data_pipeline.datasets.published import LAYOUTS
from data_pipeline.records import PersonDataset, Split

VERSION = "1.0.0"


class _PersonBuilder(tfds.core.GeneratorBasedBuilder):
    """Writes whatever the reader of the same name reads."""

    VERSION = tfds.core.Version(VERSION)
    # Set explicitly because inferring it needs importlib_resources, which TFDS 4.9.10
    # imports but does not declare (tensorflow/datasets#11212).
    code_path = tfds.core.Path(__file__)
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "The authors send the data set on request, for research only. --manual_dir is "
        "the folder that open_dataset takes as its root."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Pictures of people with captions, for retrieval by text.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(),
                    "file": tfds.features.Text(),
                    "person": np.int32,
                    "captions": tfds.features.Sequence(tfds.features.Text()),
                }
            ),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        """Read the annotation, store it as metadata and name the splits."""
        dataset = READERS[self.name](str(dl_manager.manual_dir))
        self.info.metadata.update(metadata_of(dataset))
        return {
            split.name: self._generate_examples(split, rows)
            for split in dataset.splits
            if (rows := [e for e in entries_of(dataset) if e.split == split.name])
        }

    def _generate_examples(
        self, split: Split, entries: list[Entry]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, entry in enumerate(entries):
            yield (
                index,
                {
                    "image": split.read(index),
                    "file": entry.file,
                    "person": entry.person,
                    "captions": list(entry.captions),
                },
            )


# A drawn population has the layout of CUHK-PEDES.
BUILDERS = {
    name: type(name.title().replace("_", ""), (_PersonBuilder,), {"__doc__": name})
    for name in (*LAYOUTS, "folder")
}


def metadata_of(dataset: PersonDataset) -> dict[str, Any]:
    """Return the metadata written beside the shards: everything but the pictures."""
    return {
        "fingerprint": dataset.fingerprint,
        "person_names": list(dataset.person_names),
        "entries": [list(astuple(entry)) for entry in entries_of(dataset)],
    }
