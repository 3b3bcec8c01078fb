# SPDX-License-Identifier: Apache-2.0
"""Drawn people: fixed by the seed, written completely, described only as visible."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.synthetic import identity_attributes, write_population
from data_pipeline.synthetic.__main__ import main
from data_pipeline.synthetic.attributes import (
    CHOICES,
    COLOURS,
    FAMILY,
    NONE,
    SEED_CLASSES,
    Identity,
    differences,
    seed_class,
)
from data_pipeline.synthetic.captions import (
    visible_aspects,
)
from data_pipeline.synthetic.photo import photograph
from data_pipeline.synthetic.scene import OCCLUDERS, STYLES, VIEWS, Shot, take_shot

SMALL = {
    **{"identities": 3, "images_per_identity": 2, "seed": 5, "style": "both"},
    **{"val_identities": 1, "test_identities": 2, "image_size": (64, 32)},
}
PLAIN_SHOT = Shot(
    style="studio",
    view="front",
    mirror=1,
    stride=0.5,
    scale=0.9,
    top=0.05,
    centre=0.5,
    occluder="nothing",
)


@pytest.fixture(scope="module")
def population(tmp_path_factory) -> Path:
    return write_population(tmp_path_factory.mktemp("people") / "out", **SMALL)


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def entries_of(folder: Path) -> list[dict]:
    return json.loads((folder / "CUHK-PEDES" / "reid_raw.json").read_text())


def test_layout_and_counts(population):
    entries = entries_of(population)
    splits = [entry["split"] for entry in entries]
    assert splits == ["train"] * 6 + ["val"] * 2 + ["test"] * 4
    assert [entry["id"] for entry in entries] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    images = population / "CUHK-PEDES" / "imgs"
    listed = {entry["file_path"] for entry in entries}
    drawn = {str(path.relative_to(images)) for path in images.rglob("*.jpg")}
    assert listed == drawn
    for entry in entries:
        assert set(entry) == {"split", "id", "file_path", "captions"}
        assert len(entry["captions"]) == 2
        with Image.open(images / entry["file_path"]) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (32, 64))
    options = json.loads((population / "population.json").read_text())
    assert {key: options[key] for key in SMALL} == {**SMALL, "image_size": [64, 32]}


def test_same_seed_same_bytes_whatever_the_workers(population, tmp_path):
    again = write_population(tmp_path / "again", **SMALL, workers=2)
    assert contents(again) == contents(population)


def test_another_seed_differs_but_shares_the_tokenizer(population, tmp_path):
    other = write_population(tmp_path / "other", **{**SMALL, "seed": 6})
    assert entries_of(other) != entries_of(population)
    assert contents(other / "tokenizer") == contents(population / "tokenizer")


def test_more_people_begin_with_the_same_ones():
    assert identity_attributes(9, 12)[:7] == identity_attributes(9, 7)


def test_populations_of_other_seeds_share_nobody():
    populations = [set(identity_attributes(seed, 24)) for seed in range(4)]
    assert [len(people) for people in populations] == [24] * 4
    assert len(set().union(*populations)) == 96
    for seed, people in enumerate(populations):
        assert {seed_class(person) for person in people} == {seed}
    far = identity_attributes(3 + SEED_CLASSES, 6)
    assert {seed_class(person) for person in far} == {3}


def test_families_differ_in_two_or_three_groups():
    people = identity_attributes(4, 6 * FAMILY)
    steps = [
        differences(people[place - 1], people[place])
        for place in range(1, len(people))
        if place % FAMILY
    ]
    assert set(steps) == {2, 3}


def test_near_twins_differ_in_one_group():
    count = 12 * FAMILY
    people = identity_attributes(4, count, twins=0.5)
    steps = list(itertools.starmap(differences, itertools.pairwise(people)))
    assert 0.3 < steps.count(1) / count < 0.7
    assert len(set(people)) == count
    assert {seed_class(person) for person in people} == {4}
    assert identity_attributes(4, 9, twins=0.5) == people[:9]
    all_alike = identity_attributes(4, 5, twins=1.0)
    steps = itertools.starmap(differences, itertools.pairwise(all_alike))
    assert list(steps) == [1] * 4


def test_a_person_of_whom_the_class_has_no_near_twin_is_given_up():
    """Under a closed coat little can change: somebody of these 1900 has none."""
    count = 1900
    people = identity_attributes(0, count, twins=0.1)
    assert len(set(people)) == count
    assert {seed_class(person) for person in people} == {0}
    steps = list(itertools.starmap(differences, itertools.pairwise(people)))
    assert 0.08 < steps.count(1) / count < 0.12


def test_values_are_those_of_the_tables():
    for person in identity_attributes(8, 40):
        for field, value in asdict(person).items():
            assert value == NONE or value in CHOICES[field]


def dressed(**changes: str) -> Identity:
    """Return a plainly dressed woman with some attributes changed."""
    plain = dict.fromkeys(CHOICES, NONE)
    basic = {
        **{"figure": "woman", "build": "average", "skin": "light", "hair": "ponytail"},
        **{"hair_colour": "brown", "upper": "t-shirt", "upper_colour": "red"},
        **{"pattern": "plain", "sleeves": "short", "lower": "jeans"},
        **{"lower_colour": "navy", "shoes": "sneakers", "shoes_colour": "white"},
    }
    return Identity(**{**plain, **basic, **changes})


BLUE = {"bag_colour": "blue", "outer_colour": "blue", "hat_colour": "blue"}
SEEN_FROM = [
    ({"bag": "backpack"}, "bag", {"back", "side"}),
    ({"bag": "handbag"}, "bag", {"front", "back", "side"}),
    ({"eyewear": "sunglasses"}, "eyewear", {"front", "side"}),
    ({"carried": "phone"}, "carried", {"front", "side"}),
    ({"outer": "jacket", "outer_fit": "open"}, "upper", {"front"}),
    ({"outer": "jacket", "outer_fit": "open"}, "fit", {"front"}),
    ({"pattern": "logo", "pattern_colour": "white"}, "logo", {"front"}),
    ({}, "tail", {"back", "side"}),
    ({"hat": "cap"}, "hat", {"front", "back", "side"}),
]


@pytest.mark.parametrize(("changes", "aspect", "views"), SEEN_FROM)
def test_what_each_view_shows(changes, aspect, views):
    person = dressed(**BLUE, **changes)
    shots = [replace(PLAIN_SHOT, view=view) for view in VIEWS]
    seen = {shot.view for shot in shots if aspect in visible_aspects(person, shot)}
    assert seen == views


@pytest.mark.parametrize("carried", ["phone", "book", "cup"])
def test_what_is_held_before_the_chest_is_not_drawn_from_behind(carried):
    def area(view: str, thing: str) -> int:
        shot = replace(PLAIN_SHOT, view=view)
        person = dressed(carried=thing, carried_colour="blue")
        rng = np.random.default_rng(0)
        pixels = np.asarray(photograph(person, shot, rng, image_size=(192, 96)))
        bare = dressed(carried="phone" if thing != "phone" else "cup")
        rng = np.random.default_rng(0)
        other = np.asarray(photograph(bare, shot, rng, image_size=(192, 96)))
        body = np.abs(pixels.astype(int) - other)[30:100, 38:58]
        return int((body.sum(axis=2) > 90).sum())

    assert area("front", carried) > 30
    assert area("back", carried) == 0


@pytest.mark.parametrize("occluder", ["low", "cut"])
def test_hidden_feet_are_not_told(occluder):
    shot = replace(PLAIN_SHOT, occluder=occluder)
    assert "shoes" not in visible_aspects(dressed(), shot)
    assert "shoes" in visible_aspects(dressed(), PLAIN_SHOT)


# Changed attributes, the view, and the rows and columns (as fractions of the 64 x 32
# picture) in which the pictures must differ clearly.
DRAWN = [
    ({"bag": "backpack", "bag_colour": "blue"}, "back", (0.2, 0.5), (0.3, 0.7)),
    ({"hat": "sun hat", "hat_colour": "yellow"}, "front", (0.0, 0.15), (0.2, 0.8)),
    ({"lower_colour": "beige"}, "side", (0.5, 0.9), (0.2, 0.8)),
    ({"upper_colour": "green"}, "front", (0.2, 0.5), (0.3, 0.7)),
    ({"scarf_colour": "yellow"}, "front", (0.15, 0.3), (0.3, 0.7)),
    ({"bag": "suitcase", "bag_colour": "red"}, "front", (0.6, 0.95), (0.6, 1.0)),
    (
        {"pattern": "striped", "pattern_colour": "white"},
        "back",
        (0.2, 0.5),
        (0.3, 0.7),
    ),
    ({"carried": "umbrella", "carried_colour": "red"}, "back", (0, 0.1), (0.2, 0.8)),
]


@pytest.mark.parametrize(("changes", "view", "rows", "columns"), DRAWN)
def test_attributes_survive_at_64_by_32(changes, view, rows, columns):
    shot = replace(PLAIN_SHOT, view=view, top=0.08, scale=0.85)
    pictures = [
        photograph(person, shot, np.random.default_rng(0), image_size=(192, 96)).resize(
            (32, 64)
        )
        for person in (dressed(), dressed(**changes))
    ]
    first, second = (np.asarray(picture, np.float32) for picture in pictures)
    change = np.abs(first - second).mean(axis=2)
    area = change[
        int(rows[0] * 64) : int(rows[1] * 64),
        int(columns[0] * 32) : int(columns[1] * 32),
    ]
    assert area.mean() > 8
    assert (change > 40).sum() >= 12


def test_colours_stay_apart():
    values = np.array(list(COLOURS.values()), np.float32)
    apart = np.abs(values[:, None] - values[None]).sum(axis=2)
    assert (apart + 1000 * np.eye(len(values))).min() > 55


def test_streets_are_darker_and_more_cluttered_than_studios():
    def look(style: str) -> tuple[float, float]:
        light, clutter = [], []
        for number in range(12):
            rng = np.random.default_rng(number)
            shot = replace(take_shot(rng, style=style, umbrella=False), view="front")
            picture = photograph(dressed(), shot, rng, image_size=(192, 96))
            edge = np.asarray(picture.reduce(4), np.float32)[:, :4]
            light.append(edge.mean())
            clutter.append(np.abs(np.diff(edge, axis=0)).mean())
        return float(np.mean(light)), float(np.mean(clutter))

    (studio_light, studio_clutter), (street_light, street_clutter) = map(look, STYLES)
    assert street_light < 0.7 * studio_light
    assert street_clutter > 2 * studio_clutter


def test_every_occluder_is_drawn_over_the_person():
    plain = None
    for occluder in OCCLUDERS:
        shot = replace(PLAIN_SHOT, occluder=occluder)
        picture = photograph(
            dressed(), shot, np.random.default_rng(1), image_size=(96, 48)
        )
        pixels = np.asarray(picture, np.float32)
        plain = pixels if occluder == "nothing" else plain
        changed = (np.abs(pixels - plain).mean(axis=2) > 25).mean()
        assert (changed > 0.02) == (occluder not in ("nothing", "cut")), occluder


def test_a_killed_run_leaves_nothing_behind_the_name(tmp_path):
    out = tmp_path / "people"
    command = [sys.executable, "-m", "data_pipeline.synthetic", str(out)]
    root = Path(__file__).parents[2]
    process = subprocess.Popen([*command, "--identities", "400"], cwd=root)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".people.partial-*/CUHK-PEDES/imgs/*/*.jpg")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not out.exists()
    assert not list(tmp_path.rglob("reid_raw.json"))
    assert not list(tmp_path.rglob("population.json"))
    assert len(entries_of(write_population(out, **SMALL))) == 12


def test_a_failing_run_cleans_up(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("data_pipeline.synthetic.population.write_tokenizer", fail)
    with pytest.raises(OSError, match="no space"):
        write_population(tmp_path / "people", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_whole_population_is_left_as_it_is(population):
    before = {path: path.stat().st_mtime_ns for path in population.rglob("*")}
    write_population(population, **SMALL)
    assert before == {path: path.stat().st_mtime_ns for path in population.rglob("*")}


def test_another_population_is_not_overwritten(population):
    with pytest.raises(FileExistsError, match=r"seed: there 5, wanted 7"):
        write_population(population, **{**SMALL, "seed": 7})


def test_other_files_are_not_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="holds something else"):
        write_population(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"style": "stret"}, "style='stret' is .* mean street.* studio, street, both"),
        ({"identities": 0}, "identities of at least 1, got 0"),
        ({"test_identities": -1}, "test_identities of at least 0, got -1"),
        ({"seed": -3}, "seed of at least 0, got -3"),
        ({"image_size": (96, 192)}, r"image size .* got \(96, 192\)"),
    ],
)
def test_bad_options_are_named(tmp_path, changes, shown):
    with pytest.raises(ValueError, match=shown):
        write_population(tmp_path / "people", **{**SMALL, **changes})
    assert list(tmp_path.iterdir()) == []


def test_command_line_writes_a_population_and_a_sheet(tmp_path, population, capsys):
    flags = "--identities 3 --images-per-identity 2 --seed 5 --style both"
    sizes = "--val-identities 1 --test-identities 2 --image-size 64 32"
    sheet = tmp_path / "pictures" / "sheet.png"
    arguments = [str(tmp_path / "out"), *flags.split(), *sizes.split()]
    assert main([*arguments, "--sheet", str(sheet)]) == 0
    assert contents(tmp_path / "out") == contents(population)
    assert "12 images in" in capsys.readouterr().out
    with Image.open(sheet) as image:
        assert image.width > 600


def test_command_line_says_what_is_wrong(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("precious")
    assert main([str(tmp_path)]) == 2
    assert "holds something else" in capsys.readouterr().err
