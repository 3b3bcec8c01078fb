# SPDX-License-Identifier: Apache-2.0
"""One table of bad inputs: what each reader is given, and what it says of it.

A reader's rows stand in the module of its name, beside what puts them into a folder.
"""

import pytest

from tests.bad_inputs import (
    annotations,
    commands,
    configs,
    pictures,
    prepared,
    records,
    tokenizers,
    weight_folders,
    weights,
)

MODULES = (annotations, tokenizers, pictures, prepared, weights, weight_folders)
MODULES += (records, configs, commands)
TABLE = [
    pytest.param(reader, given, message, id=f"{reader.name}-{number}")
    for module in MODULES
    for reader in module.READERS
    for number, (given, message) in enumerate(reader.rows)
]
LONGEST = 4000


def test_the_table_is_long_enough_and_says_what_is_wrong():
    assert len(TABLE) >= 300
    assert all(len(row.values[2]) > 3 for row in TABLE)


@pytest.mark.parametrize(("reader", "given", "message"), TABLE)
def test_a_bad_input_is_named(reader, given, message, tmp_path):
    with pytest.raises(reader.errors) as told:
        reader.read(tmp_path, given)
    said = str(told.value)
    assert message in said and len(said) <= LONGEST
    assert all(letter.isprintable() or letter == "\n" for letter in said)
