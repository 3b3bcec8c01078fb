# SPDX-License-Identifier: Apache-2.0
"""Everything that can be said about a data set without training."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any

from data_pipeline.datasets.layout import Counts
from data_pipeline.datasets.published import LAYOUTS
from data_pipeline.examine import BadPicture, Examiner
from data_pipeline.findings import Finding, examples
from data_pipeline.hints import printable
from data_pipeline.images import Facts, inspect
from data_pipeline.records import PersonDataset, Split
from data_pipeline.survey import cut, survey
from data_pipeline.synthetic.population import RECORD
from data_pipeline.tokenizer import Tokenizer

_DEEP = ("I", "I;16", "I;16L", "I;16B", "I;16N")


@dataclass
class Pictures:
    """What the pictures that could be decoded are, added up.

    Attributes:
        total: All pictures, the unreadable ones included.
        formats: Number of pictures of each file format.
        modes: Number of pictures of each of Pillow's modes.
        profiles: What becomes of colour profiles, see `colours.profile_of`.
        mended: Number of pictures with damaged metadata or without their end.
        heights: Smallest and largest height.
        widths: Smallest and largest width.
    """

    total: int = 0
    formats: dict[str, int] = field(default_factory=dict)
    modes: dict[str, int] = field(default_factory=dict)
    profiles: dict[str, int] = field(default_factory=dict)
    mended: int = 0
    heights: tuple[int, int] = (0, 0)
    widths: tuple[int, int] = (0, 0)

    @property
    def decoded(self) -> int:
        """Number of pictures that can be used."""
        return sum(self.formats.values())

    def add(self, facts: Facts) -> None:
        """Take in one picture."""
        first = not self.decoded
        _count(self.formats, facts.kind)
        _count(self.modes, facts.mode)
        _count(self.profiles, facts.profile)
        self.mended += facts.mended
        self.heights = _widened(self.heights, facts.height, first=first)
        self.widths = _widened(self.widths, facts.width, first=first)


@dataclass(frozen=True)
class Diagnosis:
    """The report on one data set.

    Attributes:
        name: The reader's name.
        root: The folder it was read from.
        splits: The counts of each split.
        published: The published counts to compare with; empty if there are none.
        findings: What is odd about annotation, captions and pictures.
        bad: The pictures that cannot be used.
        pictures: The others.
    """

    name: str
    root: str
    splits: dict[str, Counts]
    published: dict[str, Counts]
    findings: list[Finding]
    bad: list[BadPicture]
    pictures: Pictures

    @property
    def sound(self) -> bool:
        """Whether training and evaluation will go through and mean something."""
        return not self.bad and all(f.gravity != "error" for f in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return {"sound": self.sound} | asdict(self)


def diagnose(
    dataset: PersonDataset,
    tokenizer: Tokenizer,
    context_length: int,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Diagnosis:
    """Survey a data set and decode all of its pictures.

    Args:
        dataset: The data set.
        tokenizer: Measures the captions.
        context_length: Text positions that a caption may take.
        progress: Told the number of pictures seen and in all, after each.
    """
    pictures, bad = Pictures(), []
    examiner, twins = Examiner(dataset), _Twins()
    pictures.total = sum(len(split.images) for split in dataset.splits)
    done = 0
    for split in dataset.splits:
        for index, found in examiner.look(split, _looked_at):
            done += 1
            progress(done, pictures.total)
            if isinstance(found, BadPicture):
                bad.append(found)
                continue
            facts, digest = found
            pictures.add(facts)
            twins.add(digest, split, split.images[index].file)
    return Diagnosis(
        dataset.name,
        dataset.root,
        {split.name: counts(split) for split in dataset.splits},
        _published(dataset),
        [
            *survey(dataset),
            *cut(dataset, tokenizer, context_length),
            *_missing_folders(dataset, bad),
            *_odd_pictures(pictures),
            *twins.findings(),
        ],
        bad,
        pictures,
    )


def counts(split: Split) -> Counts:
    """Return the number of known people, pictures and captions in a split."""
    return Counts(len(split.identities), len(split.images), len(split.pairs))


def _looked_at(encoded: bytes) -> tuple[Facts, bytes]:
    return inspect(encoded), hashlib.sha256(encoded).digest()


class _Twins:
    """Finds files that are byte for byte the same."""

    def __init__(self) -> None:
        self._first: dict[bytes, tuple[str, str]] = {}
        self._pairs: dict[bool, list[str]] = {True: [], False: []}

    def add(self, digest: bytes, split: Split, file: str) -> None:
        """Take in one file."""
        where, first = self._first.setdefault(digest, (split.name, file))
        if (where, first) != (split.name, file):
            self._pairs[where == split.name].append(f"{first} and {file}")

    def findings(self) -> Iterator[Finding]:
        """Yield a finding for pairs within a split, and one for others."""
        for same, pairs in self._pairs.items():
            if pairs:
                kind = "identical-files" if same else "identical-files-across-splits"
                where = "of the same split" if same else "of different splits"
                text = (
                    f"files {where} that are byte for byte the same: {len(pairs)} "
                    f"({examples(pairs, of=len(pairs))})"
                )
                yield Finding(kind, "warning", len(pairs), text)


def _missing_folders(dataset: PersonDataset, bad: list[BadPicture]) -> list[Finding]:
    """Return which folders lack all of their pictures, more than one."""
    paths = (i.path for split in dataset.splits for i in split.images)
    wanted = Counter(printable(str(PurePath(path).parent)) for path in paths)
    gone: dict[str, int] = defaultdict(int)
    for each in bad:
        if each.reason.startswith("missing"):
            gone[str(PurePath(each.path).parent)] += 1
    return [
        Finding(
            "missing-folder",
            "error",
            number,
            f"all of {folder} missing: {number} pictures",
        )
        for folder, number in gone.items()
        if number == wanted[folder] > 1
    ]


def _odd_pictures(pictures: Pictures) -> Iterator[Finding]:
    clear = sum(n for mode, n in pictures.modes.items() if mode[-1] in "Aa")
    deep = sum(n for mode, n in pictures.modes.items() if mode in _DEEP)
    for kind, gravity, number, text in (
        (
            "ignored-profiles",
            "warning",
            pictures.profiles.get("ignored", 0),
            "pictures whose colour profile is broken or for other colours, and ignored",
        ),
        (
            "converted-profiles",
            "note",
            pictures.profiles.get("converted", 0),
            "pictures converted from their colour profile to sRGB",
        ),
        (
            "mended-pictures",
            "note",
            pictures.mended,
            "pictures with damaged metadata or without the end of their file, all "
            "of their pixels being there",
        ),
        (
            "transparent-pictures",
            "note",
            clear,
            "pictures with an alpha channel, laid on white",
        ),
        (
            "deep-grey",
            "note",
            deep,
            "pictures with 16-bit grey levels, scaled by the bits in use",
        ),
    ):
        if number:
            yield Finding(kind, gravity, number, f"{text}: {number}")


def _published(dataset: PersonDataset) -> dict[str, Counts]:
    layout = LAYOUTS.get(dataset.name)
    drawn = (Path(dataset.root).parent / RECORD).is_file()
    return {} if layout is None or drawn else dict(layout.published)


def _count(numbers: dict[str, int], kind: str) -> None:
    numbers[kind] = numbers.get(kind, 0) + 1


def _widened(ends: tuple[int, int], value: int, *, first: bool) -> tuple[int, int]:
    return (value, value) if first else (min(ends[0], value), max(ends[1], value))
