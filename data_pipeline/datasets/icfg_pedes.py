# SPDX-License-Identifier: Apache-2.0
"""ICFG-PEDES: Ding et al., Semantically Self-Aligned Network, arXiv:2107.12666, 2021.

    ICFG-PEDES/ICFG-PEDES.json (or ICFG_PEDES.json)
                               [{"split", "id", "file_path", "captions": [..]}, ..]
    ICFG-PEDES/imgs/

One caption a picture; ids start at 0; no validation split.
"""

from data_pipeline.datasets.layout import Counts, Layout, read_layout
from data_pipeline.records import PersonDataset

LAYOUT = Layout(
    name="icfg_pedes",
    title="ICFG-PEDES",
    folder="ICFG-PEDES",
    image_folder="imgs",
    annotations=("ICFG-PEDES.json", "ICFG_PEDES.json"),
    file_field="file_path",
    published={
        "train": Counts(3102, 34674, 34674),
        "test": Counts(1000, 19848, 19848),
    },
    verified="yes",
    page="https://github.com/zifyloo/SSAN",
)


def read(root: str) -> PersonDataset:
    """Read ICFG-PEDES from `root`, the folder that holds ICFG-PEDES/ or that folder."""
    return read_layout(LAYOUT, root)
