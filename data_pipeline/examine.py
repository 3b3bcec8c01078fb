# SPDX-License-Identifier: Apache-2.0
"""Pictures of a data set looked at one by one, in threads, before they are needed."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from data_pipeline.datasets.paths import ImageFolder
from data_pipeline.hints import printable
from data_pipeline.images import ImageError, header
from data_pipeline.prefetch import cores
from data_pipeline.records import PersonDataset, Split

NAMED = 100
"""Number of unreadable pictures that an error names."""

_AT_ONCE = 1024
T = TypeVar("T")


class UnreadablePicturesError(ValueError):
    """Pictures that an evaluation needs cannot be read."""


@dataclass(frozen=True)
class BadPicture:
    """A picture that cannot be used, and why; safe to print."""

    split: str
    path: str
    reason: str


class Examiner:
    """Looks at the pictures of a data set."""

    def __init__(self, dataset: PersonDataset) -> None:
        """Look at this data set."""
        self.dataset = dataset
        self._folder = ImageFolder(dataset.image_folder)

    def look(
        self, split: Split, at: Callable[[bytes], T], share: slice = slice(None)
    ) -> Iterator[tuple[int, T | BadPicture]]:
        """Yield each picture's index with what `at` says of its bytes, or why not.

        `share` selects some of the pictures.
        """

        def one(index: int) -> T | BadPicture:
            """Look at one picture; one that cannot be read is named."""
            try:
                return at(split.read(index))
            except (OSError, ImageError) as error:
                path = printable(split.images[index].path)
                return BadPicture(split.name, path, self._reason(split, index, error))

        indices = range(len(split.images))[share]
        with ThreadPoolExecutor(cores()) as pool:
            # In parts, because a pool keeps a record of everything it is to do.
            for start in range(0, len(indices), _AT_ONCE):
                part = indices[start : start + _AT_ONCE]
                yield from zip(part, pool.map(one, part), strict=True)

    def _reason(self, split: Split, index: int, error: Exception) -> str:
        if not isinstance(error, FileNotFoundError):
            return f"unreadable: {printable(str(error))}"
        near = (
            self._folder.near(split.images[index].file) if split.source is None else ""
        )
        return f"missing: did you mean {printable(near)}?" if near else "missing"


def check_evaluation(
    dataset: PersonDataset,
    splits: Iterable[str],
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> None:
    """Open every picture of the splits and read its header, which takes seconds.

    Args:
        dataset: The data set.
        splits: Names of the splits that will be measured.
        process_index: Index of this process, which looks at its share.
        process_count: Number of processes that share the pictures.

    Raises:
        ValueError: If there is no such split, or it has no captions.
        UnreadablePicturesError: If there are such that cannot be read; names them. An
            evaluation leaves nothing out, and would end the run after its first epoch.
    """
    examiner, bad, total = Examiner(dataset), [], 0
    share = slice(process_index, None, process_count)
    for split in map(dataset.evaluation_split, sorted(splits)):
        total += len(split.images)
        found = examiner.look(split, header, share)
        bad += [each for _, each in found if isinstance(each, BadPicture)]
    if bad:
        lines = [f"  {each.split}  {each.path}: {each.reason}" for each in bad[:NAMED]]
        more = [f"  and {len(bad) - NAMED} more"] if len(bad) > NAMED else []
        raise UnreadablePicturesError(
            "\n".join(
                [
                    f"{len(bad)} of {total} pictures that the evaluation needs cannot "
                    "be read; it leaves none out, so repair them or remove them from "
                    "the annotation:",
                    *lines,
                    *more,
                ]
            )
        )
