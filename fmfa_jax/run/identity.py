# SPDX-License-Identifier: Apache-2.0
"""How two runs differ, in words.

An identity is a mapping of JSON values: settings by their dotted keys, and contents
(weights, captions) by a hex SHA-256 under a name in plain English. What a path leads to
counts, never the path.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict

# Earlier versions had these in place of digests.
RETIRED = frozenset({"init.path", "data.tokenizer", "data.fingerprint"})
SINCE = {
    "losses.tal": 0.0,
    "losses.id": 0.0,  # of RDE; FMFA always had it
    "loss.tal_tau": 0.015,
    "loss.tal_margin": 0.1,
}
"""Keys that earlier versions did not have, and the values that they computed with."""
_SHA256 = re.compile("[0-9a-f]{64}")


def digest(identity: Mapping[str, Any]) -> str:
    """Hex SHA-256 of an identity; a key that was added later counts once it is used."""
    used = {k: v for k, v in identity.items() if k not in SINCE or v != SINCE[k]}
    return hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()


def differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """One line for each value that differs, sorted by key.

    Args:
        saved: Of a checkpoint; nested mappings allowed.
        wanted: Of this run.
    """
    old, new = flatten_dict(dict(saved), sep="."), flatten_dict(dict(wanted), sep=".")
    return [
        f"  {_difference(key, old, new)}"
        for key in sorted(old.keys() | new.keys())
        if _shown(old, key) != _shown(new, key)
    ]


def comparable(
    saved: Mapping[str, Any], wanted: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Mapping[str, Any], bool]:
    """What can be compared of two identities, and whether that is all.

    A checkpoint of an earlier version lacks the keys that were added since, and may
    know nothing of contents.
    """
    saved = {key: value for key, value in SINCE.items() if key in wanted} | dict(saved)
    if not RETIRED & saved.keys():
        return saved, wanted, True
    old = {key: value for key, value in saved.items() if key not in RETIRED}
    new = {key: value for key, value in wanted.items() if " " not in key}
    return old, new, False


def _difference(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    if _is_digest(old.get(key)) and _is_digest(new.get(key)):
        return f"{key}: not those of the checkpoint"
    return f"{key}: the checkpoint has {_shown(old, key)}, this run {_shown(new, key)}"


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "absent"
