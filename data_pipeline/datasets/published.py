# SPDX-License-Identifier: Apache-2.0
"""The published data sets as a table: where their files are and how large they are.

Each is a folder with an annotation file, one JSON list of pictures

    [{"split": .., "id": .., FILE_FIELD: .., "captions": [..]}, ..]

and a folder with the pictures themselves.
"""

from data_pipeline.datasets.layout import Counts, Layout

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        # Li et al., Person Search with Natural Language Description, CVPR 2017. About
        # two captions per picture; ids start at 1 in train. Papers state 68,108
        # training captions; the official reader counts 68,126 in the file.
        Layout(
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
            page="https://github.com/ShuangLI59/"
            "Person-Search-with-Natural-Language-Description",
            unsplit="caption_all.json",
        ),
        # Ding et al., Semantically Self-Aligned Network, arXiv:2107.12666, 2021. One
        # caption per picture; ids start at 0; no validation split.
        Layout(
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
        ),
        # Zhu et al., DSSL: Deep Surroundings-person Separation Learning, 2021. Five
        # pictures per person, two captions per picture; ids start at 0.
        Layout(
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
        ),
        # Zuo et al., UFineBench, CVPR 2024. Two captions of about 81 words per picture;
        # ids start at 1, and file_path begins with images/ in the authors' example.
        # UNVERIFIED: the original files have not been seen, though the counts add up to
        # the totals that the authors state; run data_pipeline.check first.
        Layout(
            name="ufine6926",
            title="UFine6926",
            folder="UFine6926",
            image_folder=".",
            annotations=("UFine6926_Annotations.json",),
            file_field="file_path",
            published={
                "train": Counts(4926, 18577, 37154),
                "test": Counts(2000, 7629, 15258),
            },
            verified="no",
            page="https://github.com/Zplusdragon/UFineBench",
        ),
    )
}
