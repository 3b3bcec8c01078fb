# SPDX-License-Identifier: Apache-2.0
"""Prepare a data set with TFDS, offline, with the flags of `tfds build`.

    python -m data_pipeline.datasets.tfds cuhk_pedes --manual_dir=ROOT --data_dir=OUT

The same as `tfds build` (see builders.py), without the apache-beam and mlcroissant
that the `tfds` script needs to start.
Then `--config.data.name=tfds:cuhk_pedes --config.data.root=OUT`.
"""

import argparse
import sys
from collections.abc import Sequence

from data_pipeline.datasets import PREPARABLE, AnnotationError


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    flags = _parser().parse_args(arguments)
    # After the flags are known to be right: TensorFlow takes seconds to import.
    import tensorflow_datasets as tfds

    from data_pipeline.datasets.tfds.builders import BUILDERS

    builder = BUILDERS[flags.name](
        data_dir=flags.data_dir, file_format=flags.file_format
    )
    if builder.is_prepared():
        print(f"already prepared, nothing done: {builder.data_dir}; delete it to redo")
        return 0
    try:
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(
                manual_dir=flags.manual_dir, num_shards=flags.num_shards
            ),
            file_format=flags.file_format,
        )
    except (AnnotationError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"prepared: {builder.data_dir}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline.datasets.tfds", description=__doc__.split("\n")[0]
    )
    parser.add_argument("name", choices=PREPARABLE)
    parser.add_argument("--manual_dir", required=True, help="the data set's root")
    parser.add_argument("--data_dir", required=True, help="where the shards go")
    parser.add_argument(
        "--file_format",
        choices=("array_record", "tfrecord"),
        default="array_record",
        help="array_record is read at random from a disk; tfrecord from any file "
        "system that TensorFlow knows, and is then held in memory",
    )
    parser.add_argument("--num_shards", type=int, help="per split; default: by size")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
