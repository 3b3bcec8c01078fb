# SPDX-License-Identifier: Apache-2.0
"""Which of the models in one file is meant: its wrappers, and prefixes of its names.

Training code keeps a model under a key of its own ("model", "state_dict", "net", beside
"state_dict_ema") or under an attribute ("model.", "clip.", beside "teacher."). Both are
groups of names here. The only group that holds a model is taken; of a model and
averages of it, the model; otherwise the caller chooses.
"""

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

from fmfa_jax.weights.tensors import IMPORT, WeightsError, shown

# Ends of names that only a model of pictures and texts has.
LANDMARKS = (
    "visual.class_embedding",
    "visual.conv1.weight",
    "visual.positional_embedding",
    "visual.proj",
    "token_embedding.weight",
    "vision_model.embeddings.class_embedding",
    "vision_model.embeddings.patch_embedding.weight",
    "image_tower/position",
    "text_tower/embedding",
)
_KEY = f"{IMPORT} --key NAME (in Python: key=NAME)"
# Taken first where no group has a landmark.
USUAL = ("model", "state_dict")
_AVERAGE = re.compile(
    r"(?i)(^|[._])(ema|avg|averaged?|teacher|momentum|swa|shadow|target|m)([._]|$)"
)


class Choice(NamedTuple):
    """A chosen group, what is left of the key that chose it, and what to tell."""

    name: str
    rest: str = ""
    notes: tuple[str, ...] = ()


def choose_group(
    groups: Mapping[str, Collection[str]], key: str = "", held: str = ""
) -> Choice:
    """Choose one of several groups of names.

    Args:
        groups: Path or prefix (without its last dot) -> names of its tensors.
        key: The caller's choice; it may name a group within a group.
        held: What the file holds, for the error.

    Raises:
        WeightsError: There is none, or several that may be meant.
    """
    if key:
        return _chosen(groups, key, held)
    models = {name: names for name, names in groups.items() if is_model(names)}
    usual = [name for name in USUAL if name in groups]
    if not models and usual:
        models = {name: groups[name] for name in usual}
    elif not models:
        models = {"": groups[""]} if "" in groups else dict(groups)
    if not models:
        raise WeightsError(
            f"no state dict in this file: expected tensors by name; it holds {held}"
        )
    plain = [name for name in models if not _AVERAGE.search(name)]
    taken = list(models) if len(models) == 1 else plain
    if len(taken) != 1:
        raise WeightsError(
            f"several state dicts in this file: it holds {_names(models)}; choose one: "
            + _KEY
        )
    others = [name for name in models if name != taken[0]]
    notes = (f"taken: {_name(taken[0])}",) if taken[0] not in ("", *USUAL) else ()
    if others:
        notes += (f"weights are also under {_names(others)}; to take those: {_KEY}",)
    return Choice(taken[0], "", notes)


def _chosen(groups: Mapping[str, Collection[str]], key: str, held: str) -> Choice:
    fitting = [n for n in groups if n and (key == n or key.startswith(f"{n}."))]
    if fitting:
        name = max(fitting, key=len)
        return Choice(name, key[len(name) + 1 :], (f"taken: {shown(name)}, as asked",))
    if "" in groups:
        return Choice("", key)
    raise WeightsError(
        f"no tensors under the key {key!r}; there are some under {_names(groups)}, and "
        f"the file holds {held}"
    )


def is_model(names: Collection[str]) -> bool:
    """Return whether some of the names belong to a model of pictures and texts."""
    return any(name.endswith(LANDMARKS) for name in names)


def _names(groups: Collection[str]) -> str:
    return ", ".join(_name(name) for name in list(groups)[:12])


def _name(name: str) -> str:
    return shown(name) or "the top"
