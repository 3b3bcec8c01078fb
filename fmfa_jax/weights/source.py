# SPDX-License-Identifier: Apache-2.0
"""Open a weight file or folder: whose it is, and what is known beside its tensors."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from flax.traverse_util import flatten_dict

from fmfa_jax.models import ModelConfig, Part, param_shapes
from fmfa_jax.models.config import ACTIVATIONS, HEAD_WIDTH
from fmfa_jax.weights import hugging_face, open_clip
from fmfa_jax.weights.archive import Archive, sha256_of
from fmfa_jax.weights.families import Names, recognise
from fmfa_jax.weights.folders import open_archive
from fmfa_jax.weights.hub import located
from fmfa_jax.weights.native import native_config
from fmfa_jax.weights.rules import HUGGING_FACE, OFFICIAL, Table, native_table
from fmfa_jax.weights.tensors import IMPORT, StoredTensor, WeightsError, listed, shown

# More than any CLIP has; a hostile name may contain any number.
MAX_LAYERS = 1000
# Image towers of open_clip whose heads are wider than 64: ViT-H, ViT-g, ViT-G.
_WIDE_HEADS = {1280: 80, 1408: 88, 1664: 104}


@dataclass(frozen=True)
class Stated:
    """What is known of a model beside the names and shapes of its tensors.

    Attributes:
        activation: See `ModelConfig`; "" where nothing tells it.
        where: What states the activation.
        config: The whole config; only our own format contains it.
        grid: Rows and columns of the stored position embedding.
        bicubic_to: The grid that a square grid stored for Hugging Face represents.
        image_size: Height and width of the images.
    """

    activation: str = ""
    where: str = ""
    config: ModelConfig | None = None
    grid: tuple[int, int] | None = None
    bicubic_to: tuple[int, int] | None = None
    image_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Source:
    """A weight file of known family.

    Attributes:
        archive: The file.
        family: What it is, for people.
        table: Maps its names to ours.
        tensors: Tensors by the table's names.
        stated: What else is known of the model.
        outside: Names that are no part of the model, with the reason.
        notes: What was taken off names, or chosen, for people.
    """

    archive: Archive
    family: str
    table: Table
    tensors: Mapping[str, StoredTensor]
    stated: Stated = Stated()
    outside: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The weight file itself, even if a folder was given."""
        return self.archive.path

    @functools.cached_property
    def sha256(self) -> str:
        """Digest of the weight file."""
        return sha256_of(self.archive)

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


def open_source(path: str | Path, key: str = "") -> Source:
    """Open any weight file or folder that this package reads.

    A folder is a run of ours (the best model if there is one, otherwise the last), a
    Hugging Face CLIP (config.json beside its weights, sharded or not), or open_clip's.
    Those of the hub are fetched; see `hub`.

    Args:
        path: The file or folder, or hf://ORG/NAME.
        key: Which of several models in the file to take.

    Raises:
        WeightsError: It cannot be read, or is no CLIP; says what it is.
    """
    archive = open_archive(located(path), key)
    try:
        if archive.metadata.get("format") == "fmfa_jax":
            return _native(archive)
        return _named(archive, recognise(archive.tensors, archive.key))
    except WeightsError as error:
        if str(archive.path) in str(error):
            raise
        raise type(error)(f"{archive.path}: {error}") from error


def _native(archive: Archive) -> Source:
    config = native_config(archive)
    shapes = {
        path: tuple(leaf.shape)
        for path, leaf in flatten_dict(param_shapes(config), sep="/").items()
    }
    problems = [
        f"{name} has shape {tensor.shape}, its config says {shapes[name]}"
        for name, tensor in archive.tensors.items()
        if name in shapes and tensor.shape != shapes[name]
    ]
    if problems:
        raise WeightsError(f"the file contradicts itself:\n{listed(problems)}")
    stated = Stated(
        activation=config.activation,
        where="its own config",
        config=config,
        grid=config.grid,
        image_size=config.image_size,
    )
    return Source(archive, "ours", native_table(shapes), archive.tensors, stated)


def _named(archive: Archive, names: Names) -> Source:
    source = Source(
        archive=archive,
        family=names.family,
        table=names.table,
        tensors={new: archive.tensors[old] for new, old in names.stored.items()},
        outside=names.outside,
        notes=archive.notes + names.notes,
    )
    return replace(source, stated=_stated(source))


def _stated(source: Source) -> Stated:
    folder = source.path.parent
    if source.table is HUGGING_FACE:
        return _of_hugging_face(source, folder / "config.json")
    written = source.archive.metadata.get("activation")
    if written in ACTIVATIONS:
        return Stated(written, "its metadata")
    if source.table is OFFICIAL:
        return Stated("quick_gelu", "the published code of IRRA, FMFA and RDE")
    if (folder / open_clip.CONFIG).is_file():
        return _of_open_clip(source, folder / open_clip.CONFIG)
    width = (source.shape("image_tower/position") or (0,))[-1]
    if width in _WIDE_HEADS:
        raise WeightsError(
            "this is a ViT-H or larger of open_clip, which is not supported: its image "
            f"tower has heads of {_WIDE_HEADS[width]}, not {HEAD_WIDTH}"
        )
    return Stated()


def _of_hugging_face(source: Source, path: Path) -> Stated:
    rows = (source.shape("text_tower/embedding") or (0,))[0]
    facts = hugging_face.read_folder_config(path, rows)
    return Stated(
        activation=facts.activation,
        where=path.name,
        grid=facts.stored,
        bicubic_to=facts.meant,
        image_size=facts.image_size,
    )


def _of_open_clip(source: Source, path: Path) -> Stated:
    facts = open_clip.read_config(path)
    for target, width in facts.widths.items():
        shape = source.shape(target)
        if shape and shape[-1] != width:
            raise WeightsError(
                f"{path} describes another model: {target} is {shown(width)} wide "
                f"there and {shape[-1]} in {source.path.name}; keep each model in a "
                "folder of its own"
            )
    return Stated(
        activation=facts.activation,
        where=path.name,
        grid=facts.grid,
        image_size=facts.image_size,
    )


def activation_of(
    source: Source, asked: str, hints: Mapping[str, str]
) -> tuple[str, str]:
    """Return a model's activation, and a sentence that says where it is from.

    Args:
        source: The weight file.
        asked: "auto", or the activation that the caller wants.
        hints: How the caller spells options.
    """
    stated, where = source.stated.activation, source.stated.where
    if asked != "auto":
        but = f", although {where} states {stated}" if stated not in ("", asked) else ""
        return asked, f"{asked}, as asked{but}"
    if stated:
        return stated, f"{stated}, stated by {where}"
    return "quick_gelu", (
        "quick_gelu, assumed since nothing beside the weights states it; if they were "
        f"trained with GELU, as open_clip does by default: {hints['activation']}"
    )


HINTS: Mapping[str, str] = {
    "activation": 'activation="gelu" (--activation gelu)',
    "drop_classifier": "drop_classifier=True (--drop-classifier)",
    "source_grid": "source_grid=(rows, columns) (--source-grid RxC)",
    "image_size": "image_size=(384, 128), stride=16 (--image-size 384x128 --stride 16)",
}
"""How Python and the commands of this package spell the options of `load_params`."""

CONFIG_HINTS: Mapping[str, str] = {
    "activation": "--config.init.activation=gelu",
    "drop_classifier": "--config.init.drop_classifier=True",
    "source_grid": f"convert it first: {IMPORT} --source-grid RxC",
}
"""How main.py spells them."""
