# SPDX-License-Identifier: Apache-2.0
"""RSTPReid: Zhu et al., DSSL: Deep Surroundings-person Separation Learning, 2021.

    RSTPReid/data_captions.json   [{"split", "id", "img_path", "captions": [..]}, ..]
    RSTPReid/imgs/

Five pictures a person, two captions a picture; ids start at 0; the file field is called
img_path here.
"""

from data_pipeline.datasets.layout import Counts, Layout, read_layout
from data_pipeline.records import PersonDataset

LAYOUT = Layout(
    name="rstp_reid",
    title="RSTPReid",
    folder="RSTPReid",
    image_folder="imgs",
    annotations=("data_captions.json",),
    file_field="img_path",
    published={
        "train": Counts(3701, 18505, 37010),
        "val": Counts(200, 1000, 2000),
        "test": Counts(200, 1000, 2000),
    },
    verified="yes",
    page="https://github.com/NjtechCVLab/RSTPReid-Dataset",
)


def read(root: str) -> PersonDataset:
    """Read RSTPReid from `root`, the folder that holds RSTPReid/ or that folder."""
    return read_layout(LAYOUT, root)
