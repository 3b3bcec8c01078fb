# SPDX-License-Identifier: Apache-2.0
"""People drawn from attributes, with sentences written from the same attributes."""

from data_pipeline.synthetic.attributes import Identity, identity_attributes
from data_pipeline.synthetic.population import (
    people_of,
    recorded_options,
    write_population,
)

__all__ = [
    "Identity",
    "identity_attributes",
    "people_of",
    "recorded_options",
    "write_population",
]
