# SPDX-License-Identifier: Apache-2.0
"""A population on disk in CUHK-PEDES's layout, written completely or not at all."""

import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline import hints
from data_pipeline.regular import read_json
from data_pipeline.synthetic import scene
from data_pipeline.synthetic.attributes import Identity, identity_attributes
from data_pipeline.synthetic.captions import write_caption
from data_pipeline.synthetic.photo import photograph
from data_pipeline.synthetic.scene import Shot, take_shot
from data_pipeline.synthetic.vocabulary import write_tokenizer

# Increased whenever the same options would give other pictures or captions.
EDITION = 2
CAPTIONS_PER_IMAGE = 2
DATASET = "CUHK-PEDES"
"""Folder of the pictures and their annotation inside a population's folder."""
RECORD = "population.json"
"""File beside that folder which marks a drawn population and holds its options."""
STYLES = (*scene.STYLES, "both")
_JPEG_QUALITY = 88


@dataclass(frozen=True, kw_only=True)
class Options:
    """Everything that determines a population's content; written to population.json.

    Attributes:
        identities: Number of people to train on.
        images_per_identity: Number of pictures of each person.
        seed: Seeds that differ modulo 64 draw different people.
        style: "studio", "street", or "both": one of them at random per picture.
        val_identities: Number of people in val, in addition to those to train on.
        test_identities: Number of people in test, in addition to those to train on.
        image_size: (height, width) of the pictures.
        twins: Share of people that differ from another in one group of attributes.
        omitted: Share of what captions would tell that they leave out.

    Raises:
        ValueError: If an option is out of range.
    """

    identities: int = 400
    images_per_identity: int = 4
    seed: int = 0
    style: str = "studio"
    val_identities: int = 0
    test_identities: int = 100
    image_size: tuple[int, int] = (192, 96)
    twins: float = 0.0
    omitted: float = 0.0
    edition: int = field(default=EDITION, init=False)

    def __post_init__(self):
        if self.style not in STYLES:
            raise ValueError(hints.unknown("style", self.style, STYLES))
        _require("identities", self.identities, 1)
        _require("images_per_identity", self.images_per_identity, 1)
        _require("seed", self.seed, 0)
        _require("val_identities", self.val_identities, 0)
        _require("test_identities", self.test_identities, 0)
        for name in ADDED:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"wanted {name} of 0 to 1, got {getattr(self, name)}")
        height, width = self.image_size
        if height < 32 or not 0.3 <= width / height <= 0.6:
            raise ValueError(
                "wanted an image size (height, width) of at least 32 rows that is two "
                f"to three times as high as wide, got {self.image_size}"
            )

    @property
    def people(self) -> int:
        """The number of identities in all splits."""
        return self.identities + self.val_identities + self.test_identities

    def split_of(self, person: int) -> str:
        """Return the split of person 0, 1, ..: train first, then val, then test."""
        if person < self.identities:
            return "train"
        return "val" if person < self.identities + self.val_identities else "test"


# What populations that were drawn before these options do not record.
ADDED = {name: getattr(Options, name) for name in ("twins", "omitted")}
OPTIONS = tuple(each.name for each in fields(Options) if each.init)
"""The names of the options."""


def write_population(
    out: str | os.PathLike[str], *, workers: int = 1, **chosen: Any
) -> Path:
    """Draw people and write them to `out` as a data set like CUHK-PEDES.

    Writes CUHK-PEDES/imgs/, CUHK-PEDES/reid_raw.json, tokenizer/ and population.json.
    The same seed draws the same people in every style. The folder is created under a
    hidden name beside `out` and renamed at the end, so that `out` is complete or
    absent; a folder that already contains exactly this population is left as it is.

    Args:
        out: The population's folder.
        workers: Number of processes that draw; the result does not depend on it.
        **chosen: Fields of `Options`.

    Returns:
        `out` as a path.

    Raises:
        ValueError: If an option is out of range.
        FileExistsError: If `out` contains anything other than this population.
    """
    options = Options(**chosen)
    target = Path(out).resolve()
    if _is_there(target, options):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent)
    try:
        _write_all(Path(draft), options, workers)
        _publish(Path(draft), target, options)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def recorded_options(root: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the options that the population in `root` was drawn with.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It was drawn by another edition of the code, or is damaged.
    """
    record = Path(root).expanduser() / RECORD
    if not record.is_file():
        raise FileNotFoundError(
            f"no drawn people in {root}: {record} is missing; draw them with python -m "
            "data_pipeline.synthetic, or name the folder of a run's data.root"
        )
    found = _recorded(record)
    if (edition := found.pop("edition", None)) != EDITION:
        raise ValueError(
            f"{record}: wanted people drawn by edition {EDITION}, got {edition}; draw "
            "them again, into another folder"
        )
    size = found.get("image_size")
    if found.keys() != set(OPTIONS) or not isinstance(size, list):
        raise ValueError(f"{record}: wanted the options {', '.join(OPTIONS)}")
    return found | {"image_size": tuple(size)}


def _recorded(record: Path) -> dict[str, Any]:
    """Return what a population.json holds.

    Raises:
        ValueError: It cannot be read.
    """
    try:
        found = read_json(record)
    except (OSError, ValueError) as error:
        raise ValueError(f"{record}: wanted a JSON file, got: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{record}: wanted an object with the options")
    return ADDED | found


def people_of(root: str | os.PathLike[str]) -> dict[int, Identity]:
    """Return who the people of the population in `root` are, by their annotated id.

    Raises:
        FileNotFoundError, ValueError: See `recorded_options`.
    """
    options = Options(**recorded_options(root))
    people = _people(options)
    return dict(enumerate(people, start=1))


def drawing_rng(seed: int, number: int, image: int) -> np.random.Generator:
    """Return what draws picture `image` of person `number`; both count from 0."""
    return _rng(seed, number, image, 1)


def shots_of(person: Identity, number: int, options: Options) -> Iterator[Shot]:
    """Yield the shots of one person's pictures, in order."""
    for image in range(options.images_per_identity):
        yield _shot(person, number, image, options)


def _people(options: Options) -> list[Identity]:
    return identity_attributes(options.seed, options.people, twins=options.twins)


def _write_all(root: Path, options: Options, workers: int) -> None:
    """Write the pictures first, then the annotation, and the options last."""
    people = _people(options)
    images = root / DATASET / "imgs"
    for style in scene.STYLES:
        for view in ("cam_a", "cam_b"):
            (images / f"{style}_{view}").mkdir(parents=True)
    job = partial(_write_person, images, options)
    numbered = list(enumerate(people))
    if workers == 1:
        entries = [job(item) for item in numbered]
    else:
        # Spawned, because forking a process that runs JAX or TensorFlow can deadlock.
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            entries = pool.map(job, numbered, chunksize=16)
    flat = [entry for person in entries for entry in person]
    _write_json(root / DATASET / "reid_raw.json", flat)
    write_tokenizer(root / "tokenizer")
    _write_json(root / RECORD, asdict(options))


def _write_person(
    images: Path, options: Options, numbered: tuple[int, Identity]
) -> list[dict[str, object]]:
    """Draw and describe all pictures of one person; return their entries."""
    number, person = numbered
    entries: list[dict[str, object]] = []
    for image, shot in enumerate(shots_of(person, number, options)):
        camera = "cam_a" if image % 2 == 0 else "cam_b"
        file_path = f"{shot.style}_{camera}/{number + 1:05d}_{image}.jpg"
        drawing = drawing_rng(options.seed, number, image)
        picture = photograph(person, shot, drawing, image_size=options.image_size)
        picture.save(images / file_path, quality=_JPEG_QUALITY)
        writing = _rng(options.seed, number, image, 2)
        captions = [
            write_caption(person, shot, writing, omitted=options.omitted)
            for _ in range(CAPTIONS_PER_IMAGE)
        ]
        entry = {"split": options.split_of(number), "id": number + 1}
        entries.append({**entry, "file_path": file_path, "captions": captions})
    return entries


def _shot(person: Identity, number: int, image: int, options: Options) -> Shot:
    """Return the circumstances of one picture, from its own generator."""
    rng = _rng(options.seed, number, image, 0)
    style = options.style
    if style == "both":
        style = scene.STYLES[int(rng.integers(len(scene.STYLES)))]
    return take_shot(rng, style=style, umbrella=person.carried == "umbrella")


def _rng(seed: int, person: int, image: int, purpose: int) -> np.random.Generator:
    """Return the generator of one picture for one purpose."""
    return np.random.default_rng([seed, person, image, purpose])


def _is_there(target: Path, options: Options) -> bool:
    """Return whether the folder already contains this population.

    Raises:
        FileExistsError: If it contains anything else.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    record = target / RECORD
    if not record.is_file():
        raise FileExistsError(
            "wanted an empty or absent folder for a synthetic population, but "
            f"{target} holds something else; choose another folder"
        )
    found = _recorded(record)
    wanted = json.loads(json.dumps(asdict(options)))
    keys = sorted(found.keys() | wanted.keys())
    differing = [
        f"{key}: there {found.get(key)}, wanted {wanted.get(key)}"
        for key in keys
        if found.get(key) != wanted.get(key)
    ]
    if differing:
        raise FileExistsError(
            f"{target} holds another synthetic population ({'; '.join(differing)}); "
            "choose another folder or delete this one"
        )
    return True


def _publish(draft: Path, target: Path, options: Options) -> None:
    """Give the finished folder its name in one step."""
    os.chmod(draft, 0o755)
    try:
        os.rename(draft, target)
    except OSError:
        # Another process may have finished the same population meanwhile.
        if not _is_there(target, options):
            raise


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _require(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"wanted {name} of at least {least}, got {value}")
