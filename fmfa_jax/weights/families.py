# SPDX-License-Identifier: Apache-2.0
"""Whose names a file has: the table that reads them, or why there is none."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from fmfa_jax.weights.groups import choose_group
from fmfa_jax.weights.rules import (
    HUGGING_FACE,
    OFFICIAL,
    OPEN_CLIP_TEXT,
    OPENAI,
    SELECTION_HEADS,
    Table,
)
from fmfa_jax.weights.tensors import WeightsError, shown

# What wrappers of PyTorch put into names, at any depth.
_WRAPPED = re.compile(
    r"(?<![^.])(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module"
    r"|_forward_module)\."
)
# Ends of names whose beginning is a model's prefix; a later row counts only if no
# earlier one is found, since its names also end others.
_ANCHORS = (
    (
        *("visual.class_embedding", "visual.conv1.weight", "visual.proj"),
        *("visual.positional_embedding", "vision_model.embeddings.class_embedding"),
        "vision_model.embeddings.patch_embedding.weight",
    ),
    ("text_model.embeddings.token_embedding.weight",),
    ("token_embedding.weight",),
)
_BASE, _TEXT = "base_model.", "text."

# A name that gives a family away, the family, and why it is not read. The first fits.
_STRANGERS = (
    (r"lora_[AB]\.|lora_(up|down)\.", "a LoRA adapter", "it holds changes to a model"),
    (
        r"vision_model\.head\.|text_model\.head\.",
        "Hugging Face SigLIP",
        "it pools its tokens by attention and has no class token",
    ),
    (
        r"visual\.trunk\.",
        "open_clip with an image tower of timm (visual.trunk.*), as SigLIP has",
        "only CLIP's own vision transformer is supported",
    ),
    (
        r"visual\.(layer1|attnpool)\.",
        "CLIP with a ResNet image tower (RN50 and its like)",
        "only vision transformers are supported",
    ),
    (
        r"visual\.(blocks\.|patch_embed\.)",
        "EVA-CLIP",
        "its image tower is not CLIP's",
    ),
    (
        r"text_decoder\.",
        "CoCa",
        "it has a decoder, and a text tower with a class token",
    ),
    (
        r"text\.transformer\.(encoder|embeddings|wte|block)",
        "open_clip with a text tower of Hugging Face",
        "only CLIP's own text tower is supported",
    ),
    (r"(^|\.)bert\.", "Chinese-CLIP", "its text tower is a BERT"),
    (
        r"(visual|text)_encoder\.",
        "ALBEF or BLIP",
        "its towers and their fusion are not CLIP's",
    ),
    (
        r"qformer|query_tokens",
        "BLIP-2",
        "its towers and their fusion are not CLIP's",
    ),
)
# The same for models of other kinds; theirs may also be the names of CLIP's heads.
_OTHERS = (
    (
        r"(^|\.)(layers|h)\.0\.(self_attn|attn|mlp)\.|(^|\.)lm_head\.",
        "a language model",
        "it is no CLIP",
    ),
    (
        r"(^|\.)patch_embed\.proj|(^|\.)cls_token$",
        "a vision transformer alone",
        "a CLIP has a text tower, too",
    ),
    (r"(^|\.)layer1\.0\.conv1|(^|\.)bn1\.", "a ResNet alone", "it is no CLIP"),
    (r"word_embeddings", "a BERT alone", "it is no CLIP"),
)


@dataclass(frozen=True)
class Names:
    """The names of a file, as a table knows them.

    Attributes:
        family: What the file is, for people.
        table: Maps the names to ours.
        stored: Name in the table -> name in the file.
        outside: Names that lie beside the model, with the reason.
        notes: What was done to the names.
    """

    family: str
    table: Table
    stored: Mapping[str, str]
    outside: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def recognise(names: Collection[str], key: str = "") -> Names:
    """Find out whose names they are, and take off what stands before them.

    Args:
        names: The names of a file.
        key: Which prefix to take, if there are several models.

    Raises:
        WeightsError: They are no CLIP's, or several models' and none is chosen.
    """
    plain, notes = _unwrapped(names)
    _check_family(plain, _STRANGERS)
    prefix, said = _prefix(plain, key)
    stored = {n[len(prefix) :]: n for n in plain if n.startswith(prefix)}
    if prefix:
        said += (f'prefix "{shown(prefix)}" taken off {len(stored)} names',)
    family, table = _family(stored)
    outside = [name for name in plain if not name.startswith(prefix)]
    # Heads may lie beside the towers.
    stored |= {n: n for n in outside if table.find(n) and n not in stored}
    reason = f"not under {shown(prefix)}"
    return Names(
        family,
        table,
        {name: plain[whole] for name, whole in stored.items()},
        {plain[n]: reason for n in outside if stored.get(n) != n},
        notes + said,
    )


def _unwrapped(names: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Take off what PyTorch's wrappers add: {plain name: name}, and what was done."""
    plain: dict[str, str] = {}
    found: dict[str, int] = {}
    for name in names:
        for wrapper in _WRAPPED.findall(name):
            found[wrapper] = found.get(wrapper, 0) + 1
        short = _WRAPPED.sub("", name)
        if short in plain:
            raise WeightsError(
                f'the file has {shown(short)} with and without "module." or the like; '
                "keep one of the two"
            )
        plain[short] = name
    notes = [
        f'"{wrapper}." taken off {count} names' for wrapper, count in found.items()
    ]
    return plain, tuple(notes)


def _prefix(names: Collection[str], key: str) -> tuple[str, tuple[str, ...]]:
    """Return what stands before all names of the model, and what to tell of it."""
    for anchors in _ANCHORS:
        found: dict[str, list[str]] = {}
        for name in names:
            for anchor in anchors:
                before = name.removesuffix(anchor)
                if before != name and (not before or before.endswith(".")):
                    before = before.removesuffix(_BASE).removesuffix(_TEXT)
                    found.setdefault(before, []).append(name)
        if found:
            groups = {before.removesuffix("."): found[before] for before in found}
            choice = choose_group(groups, key)
            if choice.rest:
                break
            notes = choice.notes if len(groups) > 1 else ()
            return (f"{choice.name}." if choice.name else ""), notes
    if key:
        raise WeightsError(f"no model's names begin with the key {key!r}")
    return "", ()


def _family(names: Collection[str]) -> tuple[str, Table]:
    """Return the family's name and its table."""
    if not any(OPENAI.find(name) or HUGGING_FACE.find(name) for name in names):
        _check_family(names, _OTHERS)
    starts = {name.split(".")[0] for name in names}
    if starts & {"vision_model", "text_model"}:
        _check_both("Hugging Face CLIP", starts, "vision_model", "text_model")
        return "Hugging Face CLIP", HUGGING_FACE
    if "base_model" in starts and starts & set(SELECTION_HEADS):
        return "RDE (official)", OFFICIAL
    if "base_model" in starts:
        return "IRRA or FMFA (official)", OFFICIAL
    if any(name.startswith("text.") for name in names):
        return "open_clip with text.*", OPEN_CLIP_TEXT
    if not any(OPENAI.find(name) for name in names):
        first = ", ".join(shown(name) for name in list(names)[:3]) or "none"
        raise WeightsError(
            f"its {len(names)} names are those of no family that is read here (OpenAI, "
            f"open_clip, Hugging Face CLIP, IRRA, FMFA, RDE); they begin with {first}"
        )
    return "OpenAI or open_clip", OPENAI


def _check_family(
    names: Collection[str], families: tuple[tuple[str, str, str], ...]
) -> None:
    for pattern, family, why in families:
        if any(map(re.compile(pattern).search, names)):
            raise WeightsError(f"this is {family}, which is not supported: {why}")


def _check_both(family: str, starts: set[str], image: str, text: str) -> None:
    for missing, other in ((image, "text"), (text, "image")):
        if missing not in starts:
            raise WeightsError(
                f"this is the {other} tower of a {family} alone ({missing}.* is "
                "missing); both towers are needed"
            )
