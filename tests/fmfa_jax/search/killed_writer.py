# SPDX-License-Identifier: Apache-2.0
"""A process that indexes a gallery and is killed after 8 pictures are saved."""

import os
import signal
import sys

from fmfa_jax import search


def die(done: int, wanted: int, bad: int) -> None:
    if done >= 8:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    gallery, out, model, tokenizer = sys.argv[1:]
    encoder = search.open_model(model, tokenizer=tokenizer)
    settings = {"batch_size": 8, "save_every": 8, "progress": die}
    search.index_gallery(gallery, out, encoder, **settings)
