# SPDX-License-Identifier: Apache-2.0
"""FMFA on ICFG-PEDES, from CLIP ViT-B/16.

    python main.py --config=configs/icfg.py --workdir=runs/icfg \
        --config.data.root=/data --config.init.path=ViT-B-16.pt

`configs/icfg.py:PRESET` selects official (default) or another of configs/base.py. The
data set has no validation split: the best checkpoint is chosen on test, and every table
says so.
"""

from configs.base import base, with_preset


def get_config(preset: str = "official"):
    """Return the config; /data/ICFG-PEDES contains imgs/ and ICFG-PEDES.json."""
    c = base()
    c.name = "icfg"
    c.data.name = "icfg_pedes"
    if preset == "paper":
        c.train.epochs = 100
    return with_preset(c, preset).lock()
