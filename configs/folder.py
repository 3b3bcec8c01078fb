# SPDX-License-Identifier: Apache-2.0
"""FMFA on your own pictures: a folder with captions.jsonl beside them.

    python main.py --config=configs/folder.py --workdir=runs/mine \
        --config.data.root=/my/pictures --config.init.path=ViT-B-16.pt

One JSON object a line: {"file": "a/1.jpg", "captions": ["a man in .."],
"person": "anna", "split": "train"}; person and split may be absent, but FMFA itself
needs the ids of the training people. `configs/folder.py:PRESET` selects official |
paper | plus | weak (default: nobody has numbers to reproduce on your pictures).
"""

from configs.base import base, with_preset


def get_config(preset: str = "plus"):
    """The configuration; captions.jsonl lies in data.root."""
    c = base()
    c.name = "folder"
    c.data.name = "folder"
    return with_preset(c, preset).lock()
