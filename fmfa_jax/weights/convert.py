# SPDX-License-Identifier: Apache-2.0
"""Apply a table: match names, check shapes, and fill our parameters.

Nothing is dropped in silence: every tensor of the file is used or ignored with a
reason, every parameter is filled or named as new, and whatever else is wrong goes
into one error that lists it all.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fmfa_jax.models import ModelConfig, param_shapes
from fmfa_jax.weights.positions import Interpolation, resize_grid, resize_line
from fmfa_jax.weights.rules import Rule
from fmfa_jax.weights.source import Source, stored_grid
from fmfa_jax.weights.tensors import FLOAT_TYPES, WeightsError
from fmfa_jax.weights.trees import flatten

TOWERS = ("image_tower", "text_tower")
HEADS = ("classifier", "irr")
IMAGE_POSITION = "image_tower/position"
TEXT_POSITION = "text_tower/position"
# XLA takes host memory over without a copy where it is aligned like this.
ALIGNMENT = 64


@dataclass
class Problems:
    """Everything that is wrong with a file, until it is raised at once."""

    missing: list[str] = field(default_factory=list)
    surplus: list[str] = field(default_factory=list)
    misfits: list[str] = field(default_factory=list)

    def check(self, source: Source) -> None:
        """Raise one error that lists all problems, if there are any.

        Raises:
            WeightsError: naming missing and surplus tensors and those that do not fit.
        """
        kinds = {
            "missing": self.missing,
            "surplus": self.surplus,
            "does not fit": self.misfits,
        }
        rows = [
            f"  {kind}: {entry}" for kind, found in kinds.items() for entry in found
        ]
        if rows:
            raise WeightsError(
                f"{source.path} ({source.table.name} names) does not give this model; "
                "nothing was loaded:\n" + "\n".join(rows)
            )


@dataclass(frozen=True)
class Match:
    """Which rules are to be applied, and what the file holds besides.

    Attributes:
        layers: of each room, as many as the names of its blocks must count.
        rules: to be applied, in the table's order.
        ignored: tensors that are not used, each with the reason.
    """

    layers: Mapping[str, int]
    rules: tuple[Rule, ...]
    ignored: tuple[str, ...]


def rooms_to_load(
    source: Source, config: ModelConfig | None, drop_classifier: bool
) -> dict[str, str]:
    """The rooms of a file: {room: ""}, or the reason why a room is left out."""
    reasons = dict.fromkeys(TOWERS, "")
    owners = [source.table.find(name) for name in source.tensors]
    present = {owner[0].room for owner in owners if owner is not None}
    for room in (head for head in HEADS if head in present):
        reasons[room] = ""
        if config is not None and not (
            config.classes if room == "classifier" else config.irr_layers
        ):
            reasons[room] = f"the model has no {room}"
    if drop_classifier and "classifier" in reasons:
        reasons["classifier"] = "dropped as asked"
    return reasons


def match_names(
    source: Source, rooms: Mapping[str, str], layers: Mapping[str, int], found: Problems
) -> Match:
    """Give each rule its tensors by name; what is over or lacking goes to `found`."""
    rules = tuple(r for r in source.table.rules if rooms.get(r.room) == "")
    used: set[str] = set()
    for rule in rules:
        for layer in range(layers[rule.room] if rule.stacked else 1):
            names = rule.names(layer)
            found.missing += [name for name in names if name not in source.tensors]
            used.update(names)
    ignored = [f"{name}: not a weight" for name in source.archive.others]
    for name in source.tensors:
        if name in used:
            continue
        reason = _reason(source, rooms, name)
        if reason:
            ignored.append(f"{name}: {reason}")
        else:
            found.surplus.append(name)
    return Match(layers=layers, rules=rules, ignored=tuple(ignored))


def _reason(source: Source, rooms: Mapping[str, str], name: str) -> str:
    """Why a tensor that no rule wants may be left; empty: it may not."""
    if source.table.is_ignored(name):
        return "the model has no use for it"
    owner = source.table.find(name)
    return "" if owner is None else rooms.get(owner[0].room, "")


def check_shapes(
    source: Source, match: Match, config: ModelConfig, found: Problems
) -> None:
    """Compare every tensor's shape and type with what the config asks for."""
    shapes = flatten(param_shapes(config))
    for rule in match.rules:
        if rule.target not in shapes:
            continue
        shape = tuple(shapes[rule.target].shape)
        wanted = rule.source_shape(shape[1:] if rule.stacked else shape)
        for layer in range(match.layers[rule.room] if rule.stacked else 1):
            for name in rule.names(layer):
                if name in source.tensors:
                    found.misfits += _misfit(source, rule, name, wanted)


def _misfit(
    source: Source, rule: Rule, name: str, wanted: tuple[int, ...]
) -> list[str]:
    """What is wrong with one tensor, as a list of at most one sentence."""
    tensor = source.tensors[name]
    if tensor.dtype not in FLOAT_TYPES:
        return [f"{name} holds {tensor.dtype}, wanted a floating-point type"]
    given = tensor.shape
    if rule.target in (IMAGE_POSITION, TEXT_POSITION):
        # The number of positions may differ: they are interpolated.
        if len(given) == 2 and given[0] > 1 and given[1] == wanted[1]:
            return []
        return [f"{name} has shape {given}, wanted (positions, {wanted[1]})"]
    if given == wanted:
        return []
    hint = ""
    if rule.room == "classifier":
        hint = "; to begin with a new head: drop_classifier=True (--drop-classifier)"
    return [f"{name} has shape {given}, wanted {wanted}{hint}"]


def fill_params(
    source: Source,
    match: Match,
    config: ModelConfig,
    stated_grid: tuple[int, int] | None,
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Read the tensors of a match that has no problems.

    Returns:
        float32 arrays by our path, and a sentence for each resized embedding.
    """
    shapes = {k: tuple(v.shape) for k, v in flatten(param_shapes(config)).items()}
    resized: list[str] = []
    positions = _read_positions(source, config, stated_grid, resized)
    params: dict[str, np.ndarray] = {}
    # Largest first: a mapped source and its copy then meet while little is held.
    for rule in sorted(match.rules, key=lambda rule: -np.prod(shapes[rule.target])):
        params[rule.target] = aligned_empty(shapes[rule.target])
        if rule.target in positions:
            params[rule.target][...] = positions[rule.target]
        else:
            _copy(source, rule, params[rule.target])
    return {path: params[path] for path in sorted(params)}, tuple(resized)


def aligned_empty(shape: tuple[int, ...]) -> np.ndarray:
    """Allocate a float32 array which XLA on a CPU can use without a copy."""
    size = 4 * int(np.prod(shape))
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(np.float32).reshape(shape)


def _copy(source: Source, rule: Rule, out: np.ndarray) -> None:
    """Copy the sources of one rule into the parameter, layer by layer."""
    for layer in range(len(out) if rule.stacked else 1):
        place = out[layer] if rule.stacked else out
        parts = np.split(place, len(rule.sources), axis=-1)
        for part, name in zip(parts, rule.names(layer), strict=True):
            part[...] = rule.to_ours(source.tensors[name].read())


def _read_positions(
    source: Source,
    config: ModelConfig,
    stated_grid: tuple[int, int] | None,
    resized: list[str],
) -> dict[str, np.ndarray]:
    """Both position embeddings at the config's sizes."""
    rules = source.table.by_target
    stored = {
        target: source.tensors[rules[target].sources[0]].read().astype(np.float32)
        for target in (IMAGE_POSITION, TEXT_POSITION)
    }
    image, text = stored[IMAGE_POSITION], stored[TEXT_POSITION]
    grid = stored_grid(source, len(image), config.grid, stated_grid)
    if source.bicubic_to is not None and stated_grid is None:
        image = resize_grid(image, grid, source.bicubic_to, Interpolation.BICUBIC)
        grid = source.bicubic_to
    if grid != config.grid:
        resized.append(f"{IMAGE_POSITION}: {_grid(grid)} -> {_grid(config.grid)}")
    if len(text) != config.context_length:
        resized.append(f"{TEXT_POSITION}: {len(text)} -> {config.context_length}")
    return {
        IMAGE_POSITION: resize_grid(image, grid, config.grid),
        TEXT_POSITION: resize_line(text, config.context_length),
    }


def _grid(grid: tuple[int, int]) -> str:
    return f"{grid[0]}x{grid[1]} patches"


def merge(initial: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Lay flat parameters over a flat tree; see `load.fill`.

    Raises:
        WeightsError: a given path is unknown, or its shape differs.
    """
    problems = [
        f"  {path} is not in the model" for path in given if path not in initial
    ]
    problems += [
        f"  {path} has shape {tuple(value.shape)}, wanted {tuple(initial[path].shape)}"
        for path, value in given.items()
        if path in initial and tuple(value.shape) != tuple(initial[path].shape)
    ]
    if problems:
        listed = "\n".join(problems)
        raise WeightsError(f"these weights are another model's:\n{listed}")
    return {**initial, **given}
