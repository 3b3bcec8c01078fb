# SPDX-License-Identifier: Apache-2.0
"""FMFA on your own pictures: a folder with captions.jsonl beside them.

    python main.py --config=configs/folder.py --workdir=runs/mine \
        --config.data.root=/my/pictures --config.init.path=ViT-B-16.pt

One JSON object per line: {"file": "a/1.jpg", "captions": ["a man in .."],
"person": "anna", "split": "train"}; person and split may be absent, but all presets
except clip and weak need the ids of the training people. `configs/folder.py:PRESET`
selects plus (default, since your pictures have no numbers to reproduce) or another of
configs/base.py.
"""

from configs.base import base, with_preset


def get_config(preset: str = "plus"):
    """Return the config; captions.jsonl is in data.root."""
    c = base()
    c.name = "folder"
    c.data.name = "folder"
    c.data.options.test_share = 0.0  # of the people, set aside where no line is in test
    return with_preset(c, preset).lock()
