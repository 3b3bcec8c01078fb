# SPDX-License-Identifier: Apache-2.0
"""Prepare a data set with TFDS, offline, with the flags of `tfds build`.

    python -m data_pipeline.datasets.tfds cuhk_pedes --manual_dir=ROOT --data_dir=OUT

Does the same as `tfds build` (see builders.py), but without apache-beam and
mlcroissant, which the `tfds` script needs to start.
To use the result: `--config.data.name=tfds:cuhk_pedes --config.data.root=OUT`.
"""

import argparse
import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout

from data_pipeline.command import Parser, path, run, say, source, told_of, verbosity
from data_pipeline.datasets import PREPARABLE, AnnotationError, open_dataset


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    flags = _parser().parse_args(arguments)
    try:
        # Read first, to report a missing or malformed data set before TFDS starts.
        _prepare(flags, open_dataset(flags.name, flags.manual_dir).fingerprint)
    except (AnnotationError, OSError) as error:
        return told_of(flags, error)
    return 0


def _prepare(flags: argparse.Namespace, fingerprint: str) -> None:
    # Imported only once the flags are known to be right, because it takes seconds.
    import tensorflow_datasets as tfds

    from data_pipeline.datasets.tfds.builders import BUILDERS

    builder = BUILDERS[flags.name](data_dir=flags.data_dir)
    if builder.is_prepared():
        _same(builder.info.file_format.value, flags.file_format, builder.data_dir)
        _same(builder.info.metadata["fingerprint"], fingerprint, builder.data_dir)
        say(f"already prepared, nothing done: {builder.data_dir}")
        return
    say(f"preparing {builder.data_dir}")
    if not verbosity(flags):
        tfds.disable_progress_bar()
    # It speaks of downloads, of which there are none.
    with redirect_stdout(sys.stdout if verbosity(flags) else io.StringIO()):
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(
                manual_dir=flags.manual_dir, num_shards=flags.num_shards
            ),
            file_format=flags.file_format,
        )
    say(f"prepared: {builder.data_dir}")


def _same(there: str, wanted: str, data_dir: str) -> None:
    if there != wanted:
        raise FileExistsError(
            f"{data_dir} was prepared differently: wanted {wanted}, got {there}. "
            "Delete it, or choose another --data_dir"
        )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m data_pipeline.datasets.tfds", description=__doc__.split("\n")[0]
    )
    parser.add_argument("name", choices=PREPARABLE)
    parser.add_argument(
        "--manual_dir", type=source, required=True, help="the data set's root"
    )
    parser.add_argument(
        "--data_dir", type=path, required=True, help="where the shards go"
    )
    parser.add_argument(
        "--file_format",
        choices=("array_record", "tfrecord"),
        default="array_record",
        help="array_record: random access from a disk; tfrecord: from any file system "
        "that TensorFlow supports, then held in memory",
    )
    parser.add_argument("--num_shards", type=int, help="per split (default: by size)")
    return parser


if __name__ == "__main__":
    run(main)
