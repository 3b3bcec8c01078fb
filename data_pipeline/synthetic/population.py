# SPDX-License-Identifier: Apache-2.0
"""A whole population on disk, in CUHK-PEDES's own layout, written all or not at all."""

import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data_pipeline.synthetic.attributes import Identity, identity_attributes
from data_pipeline.synthetic.captions import write_caption
from data_pipeline.synthetic.photo import photograph
from data_pipeline.synthetic.scene import STYLES, Shot, take_shot
from data_pipeline.synthetic.vocabulary import write_tokenizer

# Raised whenever the same options would give other pictures or captions.
EDITION = 2
CAPTIONS_PER_IMAGE = 2
VAL_IDENTITIES = 0
TEST_IDENTITIES = 100
IMAGE_SIZE = (192, 96)
_JPEG_QUALITY = 88


@dataclass(frozen=True)
class Options:
    """All that decides a population's content; written to population.json."""

    identities: int
    images_per_identity: int
    seed: int
    style: str
    val_identities: int
    test_identities: int
    image_size: tuple[int, int]
    edition: int = EDITION

    def __post_init__(self):
        if self.style not in (*STYLES, "both"):
            raise ValueError(
                f"wanted a style of {', '.join(STYLES)} or both, got {self.style!r}"
            )
        _require("identities", self.identities, 1)
        _require("images_per_identity", self.images_per_identity, 1)
        _require("seed", self.seed, 0)
        _require("val_identities", self.val_identities, 0)
        _require("test_identities", self.test_identities, 0)
        height, width = self.image_size
        if height < 32 or not 0.3 <= width / height <= 0.6:
            raise ValueError(
                "wanted an image size (height, width) of at least 32 rows, two to "
                f"three times as high as wide, got {self.image_size}"
            )

    @property
    def people(self) -> int:
        """Identities of all splits."""
        return self.identities + self.val_identities + self.test_identities

    def split_of(self, person: int) -> str:
        """The split of a person, counted from 0: train first, then val, then test."""
        if person < self.identities:
            return "train"
        return "val" if person < self.identities + self.val_identities else "test"


def write_population(
    out: str | os.PathLike[str],
    *,
    identities: int,
    images_per_identity: int = 4,
    seed: int = 0,
    style: str = "studio",
    val_identities: int = VAL_IDENTITIES,
    test_identities: int = TEST_IDENTITIES,
    image_size: tuple[int, int] = IMAGE_SIZE,
    workers: int = 1,
) -> Path:
    """Draws people and writes them to `out` as a data set like CUHK-PEDES.

    Writes CUHK-PEDES/imgs/, CUHK-PEDES/reid_raw.json, tokenizer/ and population.json.
    `identities` counts the people to train on; those of val (none by default) and of
    test (100 by default) are drawn besides.
    The same seed draws the same people in either style; `both` gives each picture a
    style by chance. The result does not depend on `workers` (processes). The folder
    is made under a hidden name beside `out` and renamed at the end, so `out` is whole
    or absent; a folder that already holds this very population is left as it is.

    Returns:
        `out` as a path.

    Raises:
        ValueError: an option is out of range.
        FileExistsError: `out` holds something else than this population.
    """
    options = Options(
        identities=identities,
        images_per_identity=images_per_identity,
        seed=seed,
        style=style,
        val_identities=val_identities,
        test_identities=test_identities,
        image_size=image_size,
    )
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


def shots_of(person: Identity, number: int, options: Options) -> Iterator[Shot]:
    """The shots of one person's pictures, in order."""
    for image in range(options.images_per_identity):
        yield _shot(person, number, image, options)


def _write_all(root: Path, options: Options, workers: int) -> None:
    """Pictures first, the annotation next, the options last."""
    people = identity_attributes(options.seed, options.people)
    images = root / "CUHK-PEDES" / "imgs"
    for style in STYLES:
        for view in ("cam_a", "cam_b"):
            (images / f"{style}_{view}").mkdir(parents=True)
    job = partial(_write_person, images, options)
    numbered = list(enumerate(people))
    if workers == 1:
        entries = [job(item) for item in numbered]
    else:
        # Spawned, since forking a process that runs JAX or TensorFlow can deadlock.
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            entries = pool.map(job, numbered, chunksize=16)
    flat = [entry for person in entries for entry in person]
    _write_json(root / "CUHK-PEDES" / "reid_raw.json", flat)
    write_tokenizer(root / "tokenizer")
    _write_json(root / "population.json", asdict(options))


def _write_person(
    images: Path, options: Options, numbered: tuple[int, Identity]
) -> list[dict[str, object]]:
    """Draws and describes all pictures of one person; returns their entries."""
    number, person = numbered
    entries: list[dict[str, object]] = []
    for image, shot in enumerate(shots_of(person, number, options)):
        camera = "cam_a" if image % 2 == 0 else "cam_b"
        file_path = f"{shot.style}_{camera}/{number + 1:05d}_{image}.jpg"
        drawing = _rng(options.seed, number, image, 1)
        picture = photograph(person, shot, drawing, image_size=options.image_size)
        picture.save(images / file_path, quality=_JPEG_QUALITY)
        writing = _rng(options.seed, number, image, 2)
        captions = [
            write_caption(person, shot, writing) for _ in range(CAPTIONS_PER_IMAGE)
        ]
        entry = {"split": options.split_of(number), "id": number + 1}
        entries.append({**entry, "file_path": file_path, "captions": captions})
    return entries


def _shot(person: Identity, number: int, image: int, options: Options) -> Shot:
    """The circumstances of one picture, from its own generator."""
    rng = _rng(options.seed, number, image, 0)
    style = options.style
    if style == "both":
        style = STYLES[int(rng.integers(len(STYLES)))]
    return take_shot(rng, style=style, umbrella=person.carried == "umbrella")


def _rng(seed: int, person: int, image: int, purpose: int) -> np.random.Generator:
    """A generator of its own for each picture and purpose."""
    return np.random.default_rng([seed, person, image, purpose])


def _is_there(target: Path, options: Options) -> bool:
    """Whether the folder already holds this population; an error if another thing."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    record = target / "population.json"
    if not record.is_file():
        raise FileExistsError(
            f"wanted an empty or absent folder for a synthetic population, but "
            f"{target} holds something else; name another folder"
        )
    found = json.loads(record.read_text(encoding="utf-8"))
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
            "name another folder or delete this one"
        )
    return True


def _publish(draft: Path, target: Path, options: Options) -> None:
    """Gives the finished folder its name, in one step."""
    os.chmod(draft, 0o755)
    try:
        os.rename(draft, target)
    except OSError:
        # Another process may have finished the same population in the meantime.
        if not _is_there(target, options):
            raise


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _require(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"wanted {name} of at least {least}, got {value}")
