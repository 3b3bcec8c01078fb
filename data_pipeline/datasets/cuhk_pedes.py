# SPDX-License-Identifier: Apache-2.0
"""CUHK-PEDES: Li et al., Person Search with Natural Language Description, CVPR 2017.

    CUHK-PEDES/reid_raw.json   [{"split", "id", "file_path", "captions": [..]}, ..]
    CUHK-PEDES/imgs/

About two captions a picture; ids start at 1 in train. Papers print 68,108 training
captions; the official reader counts 68,126 in the file.
"""

from data_pipeline.datasets.layout import Counts, Layout, read_layout
from data_pipeline.records import PersonDataset

LAYOUT = Layout(
    name="cuhk_pedes",
    title="CUHK-PEDES",
    folder="CUHK-PEDES",
    image_folder="imgs",
    annotations=("reid_raw.json",),
    file_field="file_path",
    published={
        "train": Counts(11003, 34054, 68126),
        "val": Counts(1000, 3078, 6158),
        "test": Counts(1000, 3074, 6156),
    },
    verified="yes",
    page="https://github.com/ShuangLI59/Person-Search-with-Natural-Language-Description",
)


def read(root: str) -> PersonDataset:
    """Read CUHK-PEDES from `root`, the folder that holds CUHK-PEDES/ or that folder."""
    return read_layout(LAYOUT, root)
