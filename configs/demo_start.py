# SPDX-License-Identifier: Apache-2.0
"""Train the small CLIP that the demo starts from, with ITC on another population.

    python main.py --config=configs/demo_start.py --workdir=runs/demo_start
    cp runs/demo_start/model_best.safetensors configs/demo_start.safetensors

The other population has its own seed, both styles and no identity in common with the
demo's. Pairs of the same person count as matches.
"""

from configs.demo import demo_base


def get_config():
    """Return the config; from random towers SDM would not leave its plateau."""
    c = demo_base()
    c.name = "demo_start"
    c.data.root = "data/demo_start"
    c.data.options.identities = 3000
    c.data.options.seed = 1
    c.data.options.style = "both"
    c.data.tokenizer = "data/demo_start/tokenizer"
    for name in c.losses:
        c.losses[name] = 0.0
    c.losses.itc = 1.0
    c.loss.itc_positives = "person"
    c.augment.erase = 0.0
    c.optimizer.lr = 7e-4
    c.schedule.warmup_epochs = 0.2
    c.train.epochs = 2
    c.eval.every_epochs = 1
    c.eval.pictures = 0
    c.log.every_steps = 150
    return c.lock()
