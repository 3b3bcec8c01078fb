# SPDX-License-Identifier: Apache-2.0
"""Apply a table: match names, check shapes and fill our parameters.

Nothing is dropped silently: every tensor of the file is used or ignored for a stated
reason, every parameter is filled or reported as new, and anything else goes into one
error that lists all problems.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from fmfa_jax.machines.trees import some
from fmfa_jax.models import PARTS, ModelConfig, param_shapes
from fmfa_jax.weights.positions import (
    LINES,
    Interpolation,
    resize_grid,
    resize_line,
)
from fmfa_jax.weights.rules import Rule
from fmfa_jax.weights.sizes import stored_grid
from fmfa_jax.weights.source import HINTS, Source
from fmfa_jax.weights.tensors import FLOAT_TYPES, WeightsError, listed

CLASSIFIER = "classifier"
IMAGE_POSITION = "image_tower/position"
TEXT_POSITION = "text_tower/position"
# XLA on a CPU uses host memory with this alignment without copying it.
ALIGNMENT = 64


@dataclass
class Problems:
    """Everything wrong with a file, collected to be raised at once."""

    missing: list[str] = field(default_factory=list)
    surplus: list[str] = field(default_factory=list)
    misfits: list[str] = field(default_factory=list)

    def check(self, source: Source) -> None:
        """Raise an error that lists the problems, if there are any.

        Raises:
            WeightsError: Tensors are missing, surplus or do not fit; the first are
                named.
        """
        kinds = {
            "missing": self.missing,
            "surplus": self.surplus,
            "does not fit": self.misfits,
        }
        rows = [f"{kind}: {entry}" for kind, found in kinds.items() for entry in found]
        if rows:
            raise WeightsError(
                f"{source.family} weights: {source.path} ({source.table.name} names) "
                f"does not fit this model; nothing was loaded:\n{listed(rows)}"
            )


@dataclass(frozen=True)
class Match:
    """The rules to apply, and what else the file holds.

    Attributes:
        depths: Number of blocks of each part, which the file's names must match.
        rules: Rules to apply, in the table's order.
        ignored: Unused tensors, each with the reason.
    """

    depths: Mapping[str, int]
    rules: tuple[Rule, ...]
    ignored: tuple[str, ...]


def parts_to_load(
    source: Source, config: ModelConfig | None, drop_classifier: bool
) -> dict[str, str]:
    """Return the parts to load: {part: ""}, or {part: reason not to load it}.

    Heads that the file does not have are left out; towers never are.
    """
    owners = [source.table.find(name) for name in source.tensors]
    stored = {owner[0].part for owner in owners if owner is not None}
    reasons = {}
    for part in PARTS:
        if part.switch and part.name not in stored:
            continue
        absent = config is not None and not part.is_in(config)
        reasons[part.name] = f"the model has no {part.name}" if absent else ""
    if drop_classifier and CLASSIFIER in reasons:
        reasons[CLASSIFIER] = "dropped as requested"
    return reasons


def match_names(
    source: Source, parts: Mapping[str, str], depths: Mapping[str, int], found: Problems
) -> Match:
    """Assign tensors to rules by name; surplus and missing names go to `found`."""
    rules = tuple(rule for rule in source.table.rules if parts.get(rule.part) == "")
    used: set[str] = set()
    for rule in rules:
        for layer in range(depths[rule.part] if rule.stacked else 1):
            names = rule.names(layer)
            found.missing += [name for name in names if name not in source.tensors]
            used.update(names)
    ignored = [_other(source, name) for name in source.archive.others]
    ignored += [f"{name}: {reason}" for name, reason in source.outside.items()]
    for name in source.tensors:
        if name in used:
            continue
        reason = _reason(source, parts, name)
        if reason:
            ignored.append(f"{name}: {reason}")
        else:
            found.surplus.append(name)
    return Match(depths=depths, rules=rules, ignored=tuple(ignored))


def _other(source: Source, name: str) -> str:
    return f"{name}: {source.archive.reasons.get(name, 'not a weight')}"


def _reason(source: Source, parts: Mapping[str, str], name: str) -> str:
    """Return why an unused tensor may be ignored, or "" if it may not."""
    if source.table.is_ignored(name):
        return "the model has no use for it"
    owner = source.table.find(name)
    return "" if owner is None else parts.get(owner[0].part, "")


def check_shapes(
    source: Source,
    match: Match,
    config: ModelConfig,
    found: Problems,
    hints: Mapping[str, str] = HINTS,
) -> None:
    """Compare the shape and dtype of every tensor with what the config requires."""
    shapes = flatten_dict(param_shapes(config), sep="/")
    for rule in match.rules:
        if rule.target not in shapes:
            continue
        shape = tuple(shapes[rule.target].shape)
        wanted = rule.source_shape(shape[1:] if rule.stacked else shape)
        for layer in range(match.depths[rule.part] if rule.stacked else 1):
            for name in rule.names(layer):
                if name in source.tensors:
                    found.misfits += _misfit(source, rule, name, wanted, hints)


def _misfit(
    source: Source,
    rule: Rule,
    name: str,
    wanted: tuple[int, ...],
    hints: Mapping[str, str],
) -> list[str]:
    """Describe what is wrong with one tensor, in a list of at most one sentence."""
    tensor = source.tensors[name]
    if tensor.dtype not in FLOAT_TYPES:
        return [f"{name} holds {tensor.dtype}, expected a floating-point type"]
    given = tensor.shape
    if rule.target in (IMAGE_POSITION, TEXT_POSITION):
        # The number of positions may differ, as they are interpolated.
        if len(given) == 2 and given[0] > 1 and given[1] == wanted[1]:
            return []
        return [f"{name} has shape {given}, expected (positions, {wanted[1]})"]
    if given == wanted:
        return []
    hint = ""
    if rule.part == CLASSIFIER:
        hint = f"; to start with a new head, {hints['drop_classifier']}"
    return [f"{name} has shape {given}, expected {wanted}{hint}"]


def fill_params(
    source: Source,
    match: Match,
    config: ModelConfig,
    stated_grid: tuple[int, int] | None,
    text_positions: str = LINES[0],
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Read the tensors of a match without problems.

    Returns:
        float32 arrays by our path, and a line about each resized embedding.
    """
    flat = flatten_dict(param_shapes(config), sep="/")
    shapes = {path: tuple(leaf.shape) for path, leaf in flat.items()}
    resized: list[str] = []
    positions = _read_positions(source, config, stated_grid, text_positions, resized)
    params: dict[str, np.ndarray] = {}
    # Largest first, so that peak memory (mapped source plus copy) comes early.
    for rule in sorted(match.rules, key=lambda rule: -np.prod(shapes[rule.target])):
        params[rule.target] = aligned_empty(shapes[rule.target])
        if rule.target in positions:
            params[rule.target][...] = positions[rule.target]
        else:
            _copy(source, rule, params[rule.target])
    return {path: params[path] for path in sorted(params)}, tuple(resized)


def check_finite(source: Source, params: Mapping[str, np.ndarray]) -> None:
    """Refuse parameters, flat by path, that hold a NaN or an infinity.

    Raises:
        WeightsError: Names the first of them and how many there are.
    """
    broken = [path for path, value in params.items() if not np.isfinite(value).all()]
    if broken:
        raise WeightsError(
            f"{source.path}: wanted finite parameters, got NaN or infinity in "
            f"{some(broken)} of {len(params)}; nothing was loaded. Its training "
            "diverged, or it was damaged: take an earlier file"
        )


def aligned_empty(shape: tuple[int, ...]) -> np.ndarray:
    """Allocate a float32 array that XLA on a CPU can use without copying it."""
    size = 4 * int(np.prod(shape))
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(np.float32).reshape(shape)


def _copy(source: Source, rule: Rule, out: np.ndarray) -> None:
    """Copy the sources of a rule into the parameter, layer by layer."""
    for layer in range(len(out) if rule.stacked else 1):
        place = out[layer] if rule.stacked else out
        parts = np.split(place, len(rule.sources), axis=-1)
        for part, name in zip(parts, rule.names(layer), strict=True):
            part[...] = rule.to_ours(source.tensors[name].read())


def _read_positions(
    source: Source,
    config: ModelConfig,
    stated_grid: tuple[int, int] | None,
    text_positions: str,
    resized: list[str],
) -> dict[str, np.ndarray]:
    """Read both position embeddings and resize them to the config."""
    rules = source.table.by_target
    stored = {
        target: source.tensors[rules[target].sources[0]].read().astype(np.float32)
        for target in (IMAGE_POSITION, TEXT_POSITION)
    }
    image, text = stored[IMAGE_POSITION], stored[TEXT_POSITION]
    grid = stored_grid(source, len(image), config.grid, stated_grid)
    if source.stated.bicubic_to is not None and stated_grid is None:
        image = resize_grid(
            image, grid, source.stated.bicubic_to, Interpolation.BICUBIC
        )
        grid = source.stated.bicubic_to
    if grid != config.grid:
        resized.append(f"{IMAGE_POSITION}: {_grid(grid)} -> {_grid(config.grid)}")
    if len(text) != config.context_length:
        how = "" if text_positions == LINES[0] else f", {text_positions}"
        resized.append(f"{TEXT_POSITION}: {len(text)} -> {config.context_length}{how}")
    return {
        IMAGE_POSITION: resize_grid(image, grid, config.grid),
        TEXT_POSITION: resize_line(text, config.context_length, text_positions),
    }


def _grid(grid: tuple[int, int]) -> str:
    return f"{grid[0]}x{grid[1]} patches"


def merge(initial: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Replace flat initial parameters by given ones; see `load.fill`.

    Raises:
        WeightsError: A given path is unknown, or its shape differs.
    """
    problems = [
        f"  {path} is not in the model" for path in given if path not in initial
    ]
    problems += [
        f"  {path} has shape {tuple(value.shape)}, expected "
        f"{tuple(initial[path].shape)}"
        for path, value in given.items()
        if path in initial and tuple(value.shape) != tuple(initial[path].shape)
    ]
    if problems:
        listed = "\n".join(problems)
        raise WeightsError(f"these weights belong to another model:\n{listed}")
    return {**initial, **given}
