# SPDX-License-Identifier: Apache-2.0
"""Tables of which tensor of each format is which of our parameters.

A rule maps one of our paths to the names that it has elsewhere; `{i}` is the layer.
Import and export read the same table in opposite directions.
"""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np


class Layout(Enum):
    """Axes of a stored tensor compared with ours."""

    SAME = "same"
    TRANSPOSED = "[out, in], ours [in, out]"
    CONVOLUTION = "[out, in, height, width], ours [height, width, in, out]"


_AXES = {Layout.TRANSPOSED: (1, 0), Layout.CONVOLUTION: (2, 3, 1, 0)}
_AXES_BACK = {Layout.TRANSPOSED: (1, 0), Layout.CONVOLUTION: (3, 2, 0, 1)}


# A layer number within a name; bounded, because names may be hostile.
_LAYER = re.compile(r"\.(0|[1-9][0-9]{0,6})\.")


@dataclass(frozen=True)
class Rule:
    """One parameter.

    Attributes:
        target: Our path; below "blocks" the parameter has a leading axis of layers.
        sources: Names elsewhere; several are slices along our last axis.
        layout: Axes of the sources.
    """

    target: str
    sources: tuple[str, ...]
    layout: Layout = Layout.SAME

    @property
    def stacked(self) -> bool:
        """Whether each layer has a name of its own."""
        return "{i}" in self.sources[0]

    @property
    def part(self) -> str:
        """Part of the model that has the parameter; see `models.parts`."""
        return self.target.split("/")[0]

    def names(self, layer: int) -> tuple[str, ...]:
        """Return the sources of one layer, or of the whole parameter if not stacked."""
        return tuple(source.replace("{i}", str(layer)) for source in self.sources)

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """View one source tensor in our layout."""
        if self.layout is Layout.SAME:
            return array
        return array.transpose(_AXES[self.layout])

    def from_ours(self, array: np.ndarray) -> list[np.ndarray]:
        """View one layer's parameter as tensors in the sources' layout."""
        parts = np.split(array, len(self.sources), axis=-1)
        if self.layout is Layout.SAME:
            return parts
        return [part.transpose(_AXES_BACK[self.layout]) for part in parts]

    def our_shape(self, source: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return our shape for one layer, or None if the number of axes differs."""
        axes = _AXES.get(self.layout, tuple(range(len(source))))
        if len(axes) != len(source):
            return None
        ours = [source[axis] for axis in axes]
        if len(self.sources) > 1:
            ours[-1] *= len(self.sources)
        return tuple(ours)

    def source_shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of each source for one layer of shape `ours`."""
        part = (*ours[:-1], ours[-1] // len(self.sources))
        axes = _AXES_BACK.get(self.layout, tuple(range(len(part))))
        return tuple(part[axis] for axis in axes)


@dataclass(frozen=True)
class Table:
    """The rules of one format, and patterns of names to ignore."""

    name: str
    rules: tuple[Rule, ...]
    ignored: tuple[str, ...] = ()

    @functools.cached_property
    def _owners(self) -> dict[str, Rule]:
        return {source: rule for rule in self.rules for source in rule.sources}

    @functools.cached_property
    def by_target(self) -> dict[str, Rule]:
        """Rules by our path."""
        return {rule.target: rule for rule in self.rules}

    def find(self, name: str) -> tuple[Rule, int] | None:
        """Return the rule that a name belongs to, and its layer (0 if none)."""
        if name in self._owners:
            return self._owners[name], 0
        number = _LAYER.search(name)
        if number is None:
            return None
        rule = self._owners.get(_LAYER.sub(".{i}.", name, count=1))
        return None if rule is None else (rule, int(number[1]))

    def is_ignored(self, name: str) -> bool:
        """Return whether the table lists a tensor as unneeded."""
        return any(re.fullmatch(pattern, name) for pattern in self.ignored)


def _norm(target: str, source: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{target}/scale", (f"{source}.weight",)),
        Rule(f"{target}/bias", (f"{source}.bias",)),
    )


def _dense(target: str, *sources: str) -> tuple[Rule, ...]:
    return (
        Rule(
            f"{target}/kernel",
            tuple(f"{source}.weight" for source in sources),
            Layout.TRANSPOSED,
        ),
        Rule(f"{target}/bias", tuple(f"{source}.bias" for source in sources)),
    )


def _attention(target: str, source: str) -> tuple[Rule, ...]:
    """Rules for `torch.nn.MultiheadAttention`, which fuses queries, keys, values."""
    return (
        Rule(f"{target}/qkv/kernel", (f"{source}.in_proj_weight",), Layout.TRANSPOSED),
        Rule(f"{target}/qkv/bias", (f"{source}.in_proj_bias",)),
        *_dense(f"{target}/out", f"{source}.out_proj"),
    )


def _openai_blocks(target: str, source: str) -> tuple[Rule, ...]:
    layer = f"{source}.resblocks.{{i}}"
    return (
        *_norm(f"{target}/ln_1", f"{layer}.ln_1"),
        *_attention(f"{target}/attention", f"{layer}.attn"),
        *_norm(f"{target}/ln_2", f"{layer}.ln_2"),
        *_dense(f"{target}/mlp/up", f"{layer}.mlp.c_fc"),
        *_dense(f"{target}/mlp/down", f"{layer}.mlp.c_proj"),
    )


def _hugging_face_blocks(target: str, source: str) -> tuple[Rule, ...]:
    layer = f"{source}.encoder.layers.{{i}}"
    attention = f"{layer}.self_attn"
    projections = [f"{attention}.{letter}_proj" for letter in "qkv"]
    return (
        *_norm(f"{target}/ln_1", f"{layer}.layer_norm1"),
        *_dense(f"{target}/attention/qkv", *projections),
        *_dense(f"{target}/attention/out", f"{attention}.out_proj"),
        *_norm(f"{target}/ln_2", f"{layer}.layer_norm2"),
        *_dense(f"{target}/mlp/up", f"{layer}.mlp.fc1"),
        *_dense(f"{target}/mlp/down", f"{layer}.mlp.fc2"),
    )


def _official(base: str, text: str = "") -> tuple[Rule, ...]:
    """Rules for the towers under OpenAI's names, with prefixes."""
    visual, text = f"{base}visual", f"{base}{text}"
    return (
        Rule(
            "image_tower/patch/kernel", (f"{visual}.conv1.weight",), Layout.CONVOLUTION
        ),
        Rule("image_tower/class_token", (f"{visual}.class_embedding",)),
        Rule("image_tower/position", (f"{visual}.positional_embedding",)),
        *_norm("image_tower/ln_pre", f"{visual}.ln_pre"),
        *_openai_blocks("image_tower/blocks", f"{visual}.transformer"),
        *_norm("image_tower/ln_post", f"{visual}.ln_post"),
        Rule("image_tower/projection", (f"{visual}.proj",)),
        Rule("text_tower/embedding", (f"{text}token_embedding.weight",)),
        Rule("text_tower/position", (f"{text}positional_embedding",)),
        *_openai_blocks("text_tower/blocks", f"{text}transformer"),
        *_norm("text_tower/ln_final", f"{text}ln_final"),
        Rule("text_tower/projection", (f"{text}text_projection",)),
    )


_HEADS = (
    *_dense("classifier", "classifier"),
    *_norm("irr/ln_text", "ln_pre_t"),
    *_norm("irr/ln_image", "ln_pre_i"),
    *_attention("irr/cross_attention", "cross_attn"),
    *_openai_blocks("irr/blocks", "cross_modal_transformer"),
    *_norm("irr/ln_post", "ln_post"),
    *_dense("irr/head/dense", "mlm_head.dense"),
    *_norm("irr/head/ln", "mlm_head.ln"),
    *_dense("irr/head/fc", "mlm_head.fc"),
)


def _selection(target: str, source: str, skip: str) -> tuple[Rule, ...]:
    """Rules for one of RDE's two heads, which name their residual layer differently."""
    norm, ours = f"{source}.mlp.bns.0", f"{target}/norm"
    return (
        *_dense(f"{target}/skip", f"{source}.{skip}"),
        *_dense(f"{target}/up", f"{source}.mlp.layers.0"),
        *_norm(ours, norm),
        Rule(f"{ours}/mean", (f"{norm}.running_mean",)),
        Rule(f"{ours}/variance", (f"{norm}.running_var",)),
        *_dense(f"{target}/down", f"{source}.mlp.layers.1"),
    )


# The missing letters are part of the format.
SELECTION_HEADS = ("visul_emb_layer", "texual_emb_layer")
_SELECTIONS = (
    *_selection("tse/image", SELECTION_HEADS[0], "fc"),
    *_selection("tse/text", SELECTION_HEADS[1], "linear"),
)
# Made by RDE's code and never called, and a count that nothing reads.
_UNCALLED = (
    r"visul_emb_layer\.linear\.(weight|bias)",
    r"(visul|texual)_emb_layer\.mlp\.bns\.1\..*",
    r"(visul|texual)_emb_layer\.mlp\.bns\.0\.num_batches_tracked",
)

# What else CLIP's files hold: the learned scale of its loss (ours is fixed), sizes
# that the tensors imply, and the causal mask as a constant.
_CLIP_EXTRAS = (
    r"(base_model\.)?logit_(scale|bias)",
    r"(base_model\.)?(visual\.)?(input_resolution|context_length|vocab_size)",
    r"(.*\.)?attn_mask",
)

OFFICIAL = Table(
    name="official",
    rules=(*_official("base_model."), *_HEADS, *_SELECTIONS),
    # The last pattern matches DGCMIA's memory banks: features of its training pairs.
    ignored=(*_CLIP_EXTRAS, *_UNCALLED, r"(img|txt)_memory"),
)

OPENAI = Table(name="openai", rules=(*_official(""), *_HEADS), ignored=_CLIP_EXTRAS)

# open_clip with "custom_text": the same text tower as a module of its own.
OPEN_CLIP_TEXT = Table(
    name="open_clip", rules=(*_official("", "text."), *_HEADS), ignored=_CLIP_EXTRAS
)

HUGGING_FACE = Table(
    name="hugging_face",
    rules=(
        Rule(
            "image_tower/patch/kernel",
            ("vision_model.embeddings.patch_embedding.weight",),
            Layout.CONVOLUTION,
        ),
        Rule("image_tower/class_token", ("vision_model.embeddings.class_embedding",)),
        Rule(
            "image_tower/position",
            ("vision_model.embeddings.position_embedding.weight",),
        ),
        # The missing "e" is part of the format.
        *_norm("image_tower/ln_pre", "vision_model.pre_layrnorm"),
        *_hugging_face_blocks("image_tower/blocks", "vision_model"),
        *_norm("image_tower/ln_post", "vision_model.post_layernorm"),
        Rule(
            "image_tower/projection", ("visual_projection.weight",), Layout.TRANSPOSED
        ),
        Rule("text_tower/embedding", ("text_model.embeddings.token_embedding.weight",)),
        Rule(
            "text_tower/position",
            ("text_model.embeddings.position_embedding.weight",),
        ),
        *_hugging_face_blocks("text_tower/blocks", "text_model"),
        *_norm("text_tower/ln_final", "text_model.final_layer_norm"),
        Rule("text_tower/projection", ("text_projection.weight",), Layout.TRANSPOSED),
    ),
    ignored=(
        r"logit_scale",
        r"(vision|text)_model\.embeddings\.position_ids",
    ),
)


def native_table(shapes: Mapping[str, object]) -> Table:
    """Return the table of our own format: every parameter under its own path."""
    return Table(
        name="native", rules=tuple(Rule(path, (path,)) for path in sorted(shapes))
    )
