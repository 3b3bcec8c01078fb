# SPDX-License-Identifier: Apache-2.0
"""One of two processes of test_search_hosts, which index galleries together.

Usage: index_peer.py GALLERY COPY MODEL TOKENIZER FOLDER, with COORDINATOR_ADDRESS,
NUM_PROCESSES, PROCESS_ID as a user would set them.
"""

import os
import signal
import sys
import time
from pathlib import Path

import jax

from fmfa_jax import search
from fmfa_jax.search import embed
from fmfa_jax.search.__main__ import main

SMALL = ["--batch-size", "4", "--save-every", "8"]


def blind(gallery: str, out: Path, encoder: search.IndexModel) -> str:
    """What both are told where process 1 does not see the pictures."""
    is_gone = embed.is_gone
    embed.is_gone = lambda *file: jax.process_index() == 1 or is_gone(*file)
    try:
        search.index_gallery(gallery, out, encoder)
    except search.SearchError as error:
        return str(error)
    finally:
        embed.is_gone = is_gone
    return ""


def die_once(committed: Path) -> None:
    """Kill this process when it has embedded one batch and that is committed."""
    embedded = embed.Embedder._embedded
    batches = []

    def trapped(self, batch):
        batches.append(batch)
        while len(batches) > 1:
            if committed.exists():
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.02)
        return embedded(self, batch)

    embed.Embedder._embedded = trapped


if __name__ == "__main__":
    gallery, copy, model, tokenizer, folder = sys.argv[1:]
    folder = Path(folder)
    begin = ["index", gallery, "--model", model, "--tokenizer", tokenizer, *SMALL]
    assert main([*begin, "--out", str(folder / "whole")]) == 0
    assert main(["add", str(folder / "whole"), "--gallery", copy, *SMALL]) == 0
    encoder = search.open_model(model, tokenizer=tokenizer)
    print("BLIND", blind(gallery, folder / "blind", encoder), flush=True)
    if jax.process_index() == 1:
        die_once(folder / "killed" / "index.json")
    main([*begin, "--out", str(folder / "killed")])
