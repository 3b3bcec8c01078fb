# SPDX-License-Identifier: Apache-2.0
"""UFine6926: Zuo et al., UFineBench, CVPR 2024. UNVERIFIED.

    UFine6926/UFine6926_Annotations.json
                               [{"split", "id", "file_path", "captions": [..]}, ..]
    UFine6926/images/

Two captions a picture, about 81 words each; ids start at 1. Layout and counts are from
descriptions, not checked against the original files: run data_pipeline.check first.
"""

from data_pipeline.datasets.layout import Counts, Layout, read_layout
from data_pipeline.records import PersonDataset

LAYOUT = Layout(
    name="ufine6926",
    title="UFine6926",
    folder="UFine6926",
    image_folder="images",
    annotations=("UFine6926_Annotations.json",),
    file_field="file_path",
    published={
        "train": Counts(4926, 18577, 37154),
        "test": Counts(2000, 7629, 15258),
    },
    verified="no",
    page="https://github.com/Zplusdragon/UFineBench",
)


def read(root: str) -> PersonDataset:
    """Read UFine6926 from `root`, the folder that holds UFine6926/ or that folder."""
    return read_layout(LAYOUT, root)
