# SPDX-License-Identifier: Apache-2.0
"""Example: rank pictures for a sentence with exported towers, without Flax.

    python -m fmfa_jax.weights export runs/cuhk --to onnx towers/
    python -m docs.find_with_export towers/ "a man in a red jacket" a.jpg b.jpg

Towers that were not trained with CLIP's tokenizer, such as the demo's, need the folder
of theirs: `--tokenizer data/demo/tokenizer`.

From this project it takes only the reading of pictures and sentences (NumPy and
Pillow). The model comes from the folder: ONNX Runtime runs image_tower.onnx where there
is one, JAX runs image_tower.stablehlo otherwise.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_pipeline import images
from data_pipeline.tokenizer import open_tokenizer

Tower = Callable[[np.ndarray], np.ndarray]


def open_tower(folder: Path, name: str) -> Tower:
    """Open one tower, from uint8 pictures or int32 tokens to float32 features."""
    if (folder / f"{name}.onnx").is_file():
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only
        session = onnxruntime.InferenceSession(folder / f"{name}.onnx", options)
        (taken,) = session.get_inputs()
        return lambda batch: session.run(None, {taken.name: batch})[0]
    import jax
    from jax import export

    data = (folder / f"{name}.stablehlo").read_bytes()
    call = jax.jit(export.deserialize(bytearray(data)).call)
    return lambda batch: np.asarray(call(batch))


def cosines(
    folder: Path, sentence: str, pictures: list[str], *, tokenizer: str
) -> np.ndarray:
    """Return the cosine of the sentence with each picture."""
    if not (folder / "towers.json").is_file():
        raise SystemExit(
            f"No towers in {folder}; write them with python -m fmfa_jax.weights export "
            f"RUN --to stablehlo {folder}"
        )
    sizes = json.loads((folder / "towers.json").read_text())
    words = open_tokenizer(tokenizer)
    if words.vocab_size != sizes["vocab_size"]:
        raise SystemExit(
            f"The tokenizer {tokenizer!r} has {words.vocab_size} entries, the towers "
            f"were trained with {sizes['vocab_size']}; name theirs with --tokenizer"
        )
    height, width = sizes["image_size"]
    try:
        batch = np.stack([images.load(path, (height, width)) for path in pictures])
    except (images.ImageError, OSError) as error:
        raise SystemExit(str(error)) from error
    gallery = open_tower(folder, "image_tower")(batch)
    tokens = words.encode([sentence], sizes["context_length"])
    query = open_tower(folder, "text_tower")(tokens)
    gallery = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    return gallery @ (query[0] / np.linalg.norm(query[0]))


def main() -> None:
    """Print the pictures, most similar first."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="the folder that the export wrote")
    parser.add_argument("sentence")
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--tokenizer", default="clip", help="clip, or a folder")
    args = parser.parse_args()
    found = cosines(args.folder, args.sentence, args.pictures, tokenizer=args.tokenizer)
    for place in np.argsort(-found, kind="stable"):
        print(f"{found[place]:.4f}  {args.pictures[place]}")


if __name__ == "__main__":
    main()
