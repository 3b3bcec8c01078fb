# SPDX-License-Identifier: Apache-2.0
"""FMFA on UFine6926, whose captions have about 81 words, from CLIP ViT-B/16.

    python main.py --config=configs/ufine.py --workdir=runs/ufine \
        --config.data.root=/data --config.init.path=ViT-B-16.pt

`configs/ufine.py:PRESET` selects official (default) | paper | plus | weak. The text
positions are 168, to which CLIP's 77 are interpolated. The data set has no validation
split: the best checkpoint is chosen on test, and every table says so. The layout comes
from the authors' description, not from their files: run data_pipeline.check first.
"""

from configs.base import base, with_preset


def get_config(preset: str = "official"):
    """Return the config; /data/UFine6926 has images/ and UFine6926_Annotations.json."""
    c = base()
    c.name = "ufine"
    c.data.name = "ufine6926"
    c.model.context_length = 168
    return with_preset(c, preset).lock()
