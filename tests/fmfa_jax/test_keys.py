# SPDX-License-Identifier: Apache-2.0
"""--help lists every key of a config, in the order of base.py and with its comment."""

import inspect
from pathlib import Path

import pytest

from configs import cuhk, demo
from configs.base import base
from fmfa_jax import keys
from fmfa_jax.options import flat

SOURCE = Path(inspect.getfile(base)).read_text(encoding="utf-8")

SAMPLE = """
A = 1  # no key

def base():
    c = ConfigDict()
    c.a = ConfigDict()  # a section
    c.a.x = (1, 2)  # first: one | two (which goes on
    # below) | three # four
    c.a.y = "# no comment"

    # Of what follows.
    c.a.z = (
        "long"  # behind the value
    )
    c.b = 0.5
"""


def test_a_comment_is_found_behind_its_value_and_below():
    assert keys.comments(SAMPLE) == {
        "a": "a section",
        "a.x": "first: one | two (which goes on below) | three # four",
        "a.y": "",
        "a.z": "behind the value",
        "b": "",
    }


def test_each_line_is_a_key_with_its_value_and_comment():
    config = {"b": 0.5, "a": {"new": [], "z": "long", "x": (1, 2)}}
    lines = list(keys.described(config, keys.comments(SAMPLE)))
    rows = [" ".join(line.split()) for line in lines]
    assert rows == [
        "a a section",
        "a.x = (1, 2) first: one | two (which goes on below) | three # four",
        "a.z = 'long' behind the value",
        "a.new = ()",
        "b = 0.5",
    ]


@pytest.mark.parametrize("config", [cuhk.get_config("weak"), demo.get_config("rde")])
def test_every_key_of_a_shipped_config_is_listed(config):
    values = config.to_dict()
    lines = list(keys.described(values, keys.comments(SOURCE)))
    listed = [line.split(" = ")[0].strip() for line in lines if " = " in line]
    assert sorted(listed) == sorted(flat(values))
    assert listed[:3] == ["name", "seed", "method"]


def test_every_key_has_a_comment():
    told = keys.comments(SOURCE)
    assert [key for key in flat(base().to_dict()) if not told.get(key)] == []
