# SPDX-License-Identifier: Apache-2.0
"""Open a weight file or folder: its format, and the sizes that its tensors imply."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from flax.traverse_util import flatten_dict

from fmfa_jax.models import PARTS, ModelConfig, Part, param_shapes
from fmfa_jax.weights.archive import Archive, read_archive, sha256
from fmfa_jax.weights.hugging_face import read_folder_config
from fmfa_jax.weights.native import native_config
from fmfa_jax.weights.rules import (
    HUGGING_FACE,
    OFFICIAL,
    OPENAI,
    Table,
    native_table,
)
from fmfa_jax.weights.tensors import StoredTensor, WeightsError

RUN_FILES = ("model_best.safetensors", "model_last.safetensors")
# More than any CLIP has; a hostile name may contain any number.
MAX_LAYERS = 1000
HUGGING_FACE_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Source:
    """A weight file of known format.

    Attributes:
        archive: The file.
        table: Maps its names to ours.
        tensors: Tensors by name, without the "module." of data-parallel training.
        sha256: Digest of the weight file.
        config: Config of the model; only our own format contains it.
        grid: Rows and columns of the stored position embedding, if known.
        bicubic_to: The grid that a square grid stored for Hugging Face represents.
        image_size: Image size that the format states, if any.
    """

    archive: Archive
    table: Table
    tensors: Mapping[str, StoredTensor]
    sha256: str
    config: ModelConfig | None = None
    grid: tuple[int, int] | None = None
    bicubic_to: tuple[int, int] | None = None
    image_size: tuple[int, int] | None = None

    @property
    def path(self) -> Path:
        """The weight file itself, even if a folder was given."""
        return self.archive.path

    def depth(self, part: Part) -> int:
        """Return the number of blocks of a part that the names imply."""
        count = 0
        for name, tensor in self.tensors.items():
            rule, layer = self.table.find(name) or (None, 0)
            if rule is None or rule.part != part.name or "/blocks/" not in rule.target:
                continue
            whole = (tensor.shape or (0,))[0]
            count = max(count, layer + 1 if rule.stacked else whole)
        if count > MAX_LAYERS:
            raise WeightsError(
                f"{self.path}: its names imply {count} layers of {part.name}"
            )
        return count

    def switch(self, part: Part) -> int:
        """Return the config value that describes a head; 0 if the file has none."""
        if not part.sized_by:
            return self.depth(part)
        return (self.shape(part.sized_by) or (0,))[-1]

    def shape(self, target: str) -> tuple[int, ...] | None:
        """Return our shape of a parameter outside of blocks, or None if absent."""
        rule = self.table.by_target.get(target)
        stored = None if rule is None else self.tensors.get(rule.sources[0])
        return None if stored is None else rule.our_shape(stored.shape)


def open_source(path: str | Path) -> Source:
    """Open any weight file or folder that this package reads.

    A folder is a Hugging Face CLIP (config.json beside its weights) or a run of ours
    (the best model if there is one, otherwise the last).
    """
    path = Path(path)
    archive = read_archive(_weight_file(path))
    if archive.metadata.get("format") == "fmfa_jax":
        return _native(archive)
    tensors = _without_module(archive)
    digest = sha256(archive.path)
    if any(name.startswith(("vision_model.", "text_model.")) for name in tensors):
        return _hugging_face(archive, tensors, digest)
    official = any(name.startswith("base_model.") for name in tensors)
    table = OFFICIAL if official else OPENAI
    return Source(archive=archive, table=table, tensors=tensors, sha256=digest)


def _weight_file(path: Path) -> Path:
    """Return the weight file of a folder, or a file itself."""
    if not path.is_dir():
        return path
    wanted = (*RUN_FILES, *HUGGING_FACE_FILES)
    for name in wanted:
        if (path / name).is_file():
            return path / name
    raise WeightsError(
        f"no weights in the folder {path}; expected one of {', '.join(wanted)} "
        "(sharded checkpoints are not supported: save them as one file)"
    )


def _without_module(archive: Archive) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in archive.tensors.items():
        plain = name.removeprefix("module.")
        if plain in tensors:
            raise WeightsError(
                f'{archive.path} has {plain} with and without "module."; '
                "keep one of the two"
            )
        tensors[plain] = tensor
    return tensors


def _native(archive: Archive) -> Source:
    config = native_config(archive)
    return Source(
        archive=archive,
        table=native_table(flatten_dict(param_shapes(config), sep="/")),
        tensors=archive.tensors,
        sha256=sha256(archive.path),
        config=config,
        grid=config.grid,
        image_size=config.image_size,
    )


def _hugging_face(
    archive: Archive, tensors: Mapping[str, StoredTensor], digest: str
) -> Source:
    grids = read_folder_config(archive.path.parent / "config.json")
    return Source(
        archive=archive,
        table=HUGGING_FACE,
        tensors=tensors,
        sha256=digest,
        grid=grids.stored,
        bicubic_to=grids.meant,
        image_size=grids.image_size,
    )


def infer_config(
    source: Source,
    *,
    image_size: tuple[int, int] | None = None,
    stride: int | None = None,
    context_length: int | None = None,
) -> ModelConfig:
    """Infer a config from the shapes of the tensors.

    Args:
        source: The weight file.
        image_size: See `load.load_params`.
        stride: See `load.load_params`.
        context_length: See `load.load_params`.

    Raises:
        WeightsError: A tensor that determines a size is missing, or the image size is
            not stated and the grid is not square.
    """
    if source.config is not None:
        return _restated(source.config, image_size, stride, context_length)
    shapes = _telling_shapes(source)
    patch, _, _, image_width = shapes["image_tower/patch/kernel"]
    if image_size is None:
        rows = shapes["image_tower/position"][0]
        image_size = source.image_size or _square(source, rows, patch)
    depths = {part.blocks: source.depth(part) for part in PARTS if part.blocks}
    switches = {part.switch: source.switch(part) for part in PARTS if part.switch}
    try:
        return ModelConfig(
            image_size=image_size,
            patch=patch,
            stride=patch if stride is None else stride,
            image_width=image_width,
            context_length=context_length or shapes["text_tower/position"][0],
            vocab_size=shapes["text_tower/embedding"][0],
            text_width=shapes["text_tower/embedding"][1],
            embed_dim=shapes["image_tower/projection"][1],
            **(depths | switches),
        )
    except ValueError as error:
        raise WeightsError(f"{source.path}: {error}") from error


def _telling_shapes(source: Source) -> dict[str, tuple[int, ...]]:
    """Return our shapes of the tensors that determine a model's sizes."""
    ranks = {
        "image_tower/patch/kernel": 4,
        "image_tower/position": 2,
        "image_tower/projection": 2,
        "text_tower/embedding": 2,
        "text_tower/position": 2,
    }
    shapes = {target: source.shape(target) for target in ranks}
    silent = [t for t, rank in ranks.items() if len(shapes[t] or ()) != rank]
    if silent:
        raise WeightsError(f"no usable {', '.join(silent)} to infer the sizes from")
    return {target: shape for target, shape in shapes.items() if shape is not None}


def _square(source: Source, rows: int, patch: int) -> tuple[int, int]:
    side = math.isqrt(max(rows - 1, 0))
    if side * side != rows - 1:
        raise WeightsError(
            f"{source.path}: {rows - 1} patches are not a square, so the image size "
            "is unknown; state it: image_size=(384, 128), stride=16 "
            "(--image-size 384x128 --stride 16)"
        )
    return side * patch, side * patch


def _restated(
    config: ModelConfig,
    image_size: tuple[int, int] | None,
    stride: int | None,
    context_length: int | None,
) -> ModelConfig:
    return replace(
        config,
        image_size=image_size or config.image_size,
        stride=stride or config.stride,
        context_length=context_length or config.context_length,
    )


def stored_grid(
    source: Source, rows: int, target: tuple[int, int], stated: tuple[int, int] | None
) -> tuple[int, int]:
    """Return the grid of a stored position embedding with `rows` rows.

    One row is the class token's. A grid stated by the caller or the format is
    authoritative. Otherwise a square number of patches is a square grid, and any other
    number must be that of the target grid.
    """
    patches = rows - 1
    known = stated or source.grid
    if known is not None:
        if known[0] * known[1] != patches:
            raise WeightsError(
                f"the stated grid is {known[0]} x {known[1]}, but the file has "
                f"{patches} patch positions"
            )
        return known
    side = math.isqrt(patches)
    square, fits = side * side == patches, target[0] * target[1] == patches
    if square and fits and target != (side, side):
        raise WeightsError(
            f"{patches} patch positions can be {side} x {side} or {target[0]} x "
            f"{target[1]}; state which: source_grid=(rows, columns) (--source-grid)"
        )
    if square:
        return side, side
    if fits:
        return target
    raise WeightsError(
        f"{patches} patch positions are neither a square nor {target[0]} x "
        f"{target[1]}; state their shape: source_grid=(rows, columns) (--source-grid)"
    )
