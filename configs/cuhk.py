# SPDX-License-Identifier: Apache-2.0
"""FMFA on CUHK-PEDES, from CLIP ViT-B/16.

    python main.py --config=configs/cuhk.py --workdir=runs/cuhk \
        --config.data.root=/data --config.init.path=ViT-B-16.pt

`configs/cuhk.py:PRESET` selects official (default) or another of configs/base.py.
"""

from configs.base import base, with_preset


def get_config(preset: str = "official"):
    """Return the config; /data/CUHK-PEDES contains imgs/ and reid_raw.json."""
    c = base()
    c.name = "cuhk"
    c.data.name = "cuhk_pedes"
    return with_preset(c, preset).lock()
