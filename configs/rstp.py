# SPDX-License-Identifier: Apache-2.0
"""FMFA on RSTPReid, from CLIP ViT-B/16.

    python main.py --config=configs/rstp.py --workdir=runs/rstp \
        --config.data.root=/data --config.init.path=ViT-B-16.pt

`configs/rstp.py:PRESET` selects official (default) or another of configs/base.py.
"""

from configs.base import base, with_preset


def get_config(preset: str = "official"):
    """Return the config; /data/RSTPReid contains imgs/ and data_captions.json."""
    c = base()
    c.name = "rstp"
    c.data.name = "rstp_reid"
    c = with_preset(c, preset, paper_alpha=1.0)
    if preset.startswith("weak"):
        c.train.epochs = 16
    c.rde.mixture = "tight"
    return c.lock()
