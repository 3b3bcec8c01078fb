# SPDX-License-Identifier: Apache-2.0
"""The whole chain learns: retrieval of unseen people leaves chance by far."""

import json

import jax
import numpy as np

from configs import demo_start
from fmfa_jax import weights
from fmfa_jax.training import loop


def test_unseen_people_are_found_again_after_the_towers_were_parted(tmp_path):
    """The demo's start with a random text projection is at chance (5 per cent).

    From random towers hundreds of steps pass before anything is found: too long here.
    """
    start = weights.load_params("configs/demo_start.safetensors")
    projection = start.params["text_tower"]["projection"]
    noise = np.random.default_rng(0).normal(size=projection.shape) * projection.std()
    start.params["text_tower"]["projection"] = noise.astype(np.float32)
    weights.save_native(tmp_path / "parted.safetensors", start.params, start.config)

    config = demo_start.get_config().copy_and_resolve_references()
    config.unlock()
    config.init.path = str(tmp_path / "parted.safetensors")
    config.data.root = str(tmp_path / "people")
    config.data.tokenizer = str(tmp_path / "people" / "tokenizer")
    config.data.options.update(
        identities=300, images_per_identity=2, val_identities=2, test_identities=20
    )
    config.train.epochs, config.train.stop_step = 5, 90
    config.eval.every_epochs = 0
    config.log.tensorboard = False
    # One device: eight simulated ones on two cores only wait for each other.
    one = jax.devices()[:1]
    loop.evaluate(config, str(tmp_path / "before"), devices=one)
    loop.train(config, str(tmp_path / "run"), devices=one)
    before, after = (
        json.loads((tmp_path / name / "metrics.json").read_text())["t2i"]["r1"]
        for name in ("before/eval/0", "run/eval/90")
    )
    assert before < 15
    assert after > 35
