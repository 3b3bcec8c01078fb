# SPDX-License-Identifier: Apache-2.0
"""The shipped demo config, shrunk to seconds: what the tests of whole runs share."""

from pathlib import Path

from configs import demo

IDENTITIES, IMAGES, VAL, TEST = 16, 2, 4, 8


def tiny_config(folder: Path, preset: str = "plus", **changes):
    """`configs/demo.py:preset` on a tiny population in `folder`, 12 steps of 8 pairs.

    Args:
        folder: shared by the runs of a test session: the population and the compiled
            programs lie there.
        preset: of the demo.
        changes: dotted keys with __ for the dot, as train__stop_step=5.
    """
    c = demo.get_config(preset).copy_and_resolve_references()
    c.unlock()
    c.init.path = ""
    c.weak.threshold = 0.7  # of random towers, which are nearly collinear
    c.data.root = str(folder / "population")
    c.data.tokenizer = str(folder / "population" / "tokenizer")
    c.data.options.identities = IDENTITIES
    c.data.options.images_per_identity = IMAGES
    c.data.options.val_identities = VAL
    c.data.options.test_identities = TEST
    c.run.compilation_cache = str(folder / "compiled")
    # Two epochs of 64 pairs; the rate must move within them.
    c.train.batch_size = 8
    c.train.epochs = 2
    c.train.stop_step = 12
    c.schedule.warmup_epochs = 0.5
    c.eval.every_epochs = 1
    c.eval.batch_size = 16
    c.eval.pictures = 0
    c.log.every_steps = 1
    c.log.tensorboard = False
    c.checkpoint.every_steps = 5
    c.lock()
    with c.unlocked():
        for key, value in changes.items():
            c.update_from_flattened_dict({key.replace("__", "."): value})
    return c
