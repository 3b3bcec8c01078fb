# SPDX-License-Identifier: Apache-2.0
"""Drawn people: small towers and a few minutes on a CPU.

    python main.py --config=configs/demo.py --workdir=runs/demo

Draws a population on first use (data/demo) and starts from a small CLIP trained with
ITC on ANOTHER population (by configs/demo_start.py), as the real configs start from
OpenAI's. `configs/demo.py:PRESET` selects plus (default) or another of configs/base.py.
"""

from pathlib import Path

from configs.base import base, with_preset

START = Path(__file__).with_name("demo_start.safetensors")
EPOCHS = 3


def get_config(preset: str = "plus"):
    """Return the config: three epochs of 12000 pairs."""
    c = with_preset(demo_base(), preset)
    c.init.path = str(START)
    c.data.caption_buckets = ()  # here another compilation costs more than it saves
    c.train.epochs = EPOCHS
    if c.method == "weak":
        _weak_for_drawn_people(c)
    if c.method == "rde":
        _rde_for_small_towers(c)
    return c.lock()


def _rde_for_small_towers(c):
    """Adapt RDE's settings that presume CLIP and real captions."""
    c.rde.width = 256  # twice that of the towers' joint space, as with CLIP
    c.rde.lr = 4e-4  # the towers learn as fast
    # Every word of a drawn caption counts.
    c.rde.mask = 0.05
    c.rde.replace = c.rde.remove = 0.0


def _weak_for_drawn_people(c):
    """Adapt the weak method's settings that presume CLIP and real captions."""
    # With the small towers' initial features 29 % of all pairs have a cosine above .7.
    # Above .97 more than half of the mined links are right, as above .7 with CLIP.
    c.weak.threshold = 0.97
    # Every word of a synthetic caption counts: with half of them hidden, few captions
    # still tell people apart.
    c.mask.rate = 0.15
    c.weak.mask_first = "never"


def demo_base():
    """Return what the demo and its start have in common: data, towers, optimizer."""
    c = base()
    c.name = "demo"
    c.data.name = "synthetic"
    c.data.root = "data/demo"
    c.data.options = {
        "identities": 1500,
        "images_per_identity": 4,
        "seed": 0,
        "style": "studio",
        "val_identities": 50,
        "test_identities": 100,
        "twins": 0.0,  # share of people that differ from another in a single thing
        "omitted": 0.0,  # share of the facts that captions leave out
        "workers": 2,
    }
    c.data.tokenizer = "data/demo/tokenizer"
    c.data.cache = "memory"
    c.model.preset = "demo"
    c.model.image_size = (64, 32)
    c.model.context_length = 56  # no drawn caption is longer
    c.model.irr_layers = 1
    c.train.batch_size = 32  # more, smaller steps learn faster here
    c.augment.pad = 2
    c.optimizer.lr = 4e-4
    c.optimizer.eps = 1e-8
    c.schedule.warmup_epochs = 0.5
    c.schedule.every = "step"
    c.eval.every_epochs = 1
    c.log.every_steps = 25
    c.checkpoint.every_epochs = 1
    return c
