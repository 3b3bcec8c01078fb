# SPDX-License-Identifier: Apache-2.0
"""What is compared: presets, and single changes to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        preset: Preset of configs/demo.py.
        changes: Config keys that differ from the preset.
        program: Arguments of Python that train it.
        published: R1 on CUHK-PEDES, ICFG-PEDES and RSTPReid: the authors', and of CLIP
            what ICL's authors reached when they fine-tuned it again.
    """

    preset: str
    changes: Mapping[str, object] = field(default_factory=dict)
    published: str = ""
    program: Sequence[str] = ("main.py",)


def losses(**weights: float) -> dict[str, float]:
    """Weights of FMFA's losses; those that are not named are 0."""
    names = ("sdm", "a_sdm", "id", "mlm", "efa", "itc", "cmpm", "tal")
    return {f"losses['{name}']": weights.pop(name, 0.0) for name in names} | weights


def without(*names: str) -> dict[str, float]:
    """Weights 0 for some losses of a preset."""
    return {f"losses['{name}']": 0.0 for name in names}


BY_PERSON = {"loss.itc_positives": "person"}
PLUS_WORDS = {"loss.mlm_rule": "plus"}
PRESETS = {
    "official": Row("official", published="74.16 / 64.29 / 61.05"),
    "plus": Row("plus"),
    "tal": Row("tal"),
    "repaired": Row("repaired"),
    "paper": Row("paper"),
    "irra": Row("irra", published="73.38 / 63.46 / 60.20"),
    "clip": Row("clip", published="71.64 / 60.11 / 56.55"),
    "rde": Row("rde", published="75.94 / 67.68 / 65.35"),
    "rde-batch": Row("rde-batch"),
    "weak": Row("weak", published="73.06 / 63.71 / 61.30"),
    "weak-paper": Row("weak-paper"),
    "weak-plus": Row("weak-plus"),
}
GLOBAL = {
    "sdm": Row("irra", losses(sdm=1.0)),
    "sdm + id": Row("irra", losses(sdm=1.0, id=1.0)),
    "itc by person": Row("clip", BY_PERSON),
    "itc by person + id": Row("clip", losses(itc=1.0, id=1.0) | BY_PERSON),
    "a-sdm official + id": Row("official", losses(a_sdm=1.0, id=1.0)),
    "a-sdm plus + id": Row("repaired", losses(a_sdm=1.0, id=1.0)),
    "a-sdm plus 1 + id": Row(
        "repaired", losses(a_sdm=1.0, id=1.0) | {"loss.a_sdm_alpha": 1.0}
    ),
    "a-sdm plus 5 + id": Row(
        "repaired", losses(a_sdm=1.0, id=1.0) | {"loss.a_sdm_alpha": 5.0}
    ),
    # The same losses, added up in another order: what is left is the noise of a run.
    "sdm + id in chunks": Row("irra", losses(sdm=1.0, id=1.0) | {"train.chunks": 2}),
    "uniform sdm + id": Row(
        "irra", losses(sdm=1.0, id=1.0) | {"optimizer.groups": "uniform"}
    ),
    "identity sampler": Row(
        "irra", losses(sdm=1.0, id=1.0) | {"data.sampler": "identity"}
    ),
}
LOCAL = {
    "itc + id + irr": Row(
        "clip", losses(itc=1.0, id=1.0, mlm=1.0) | BY_PERSON | PLUS_WORDS
    ),
    "irr official": Row("irra"),
    "irr plus": Row("irra", {"loss.mlm_rule": "plus"}),
    "irr .3": Row("irra", {"losses.mlm": 0.3}),
    "irr .1": Row("irra", {"losses.mlm": 0.1}),
    "irr, clean captions": Row("irra", {"mask.all_captions": False}),
    "repaired without irr": Row("repaired", without("mlm")),
    "repaired without efa": Row("repaired", without("efa")),
}
CANDIDATES = ("-m", "benchmarks.ablation.candidates")
EXPLICIT = {
    f"{rule} efa {weight:g}": Row(
        "clip",
        losses(itc=1.0, id=1.0, efa=weight) | BY_PERSON | {"loss.efa_rule": rule},
        program=program,
    )
    for program, rules in (
        (("main.py",), ("official", "plus")),
        (
            CANDIDATES,
            ("late", "late-both", "within", "distilled", "selected", "transport"),
        ),
    )
    for rule in rules
    for weight in (0.3, 1.0)
}
RDE = {
    "plus without id": Row("plus", without("id")),
    "plus without id, tse": Row("plus", without("id", "tse")),
    "rde + id": Row("rde", {"losses.id": 1.0}),
    "tal .005": Row("tal", {"loss.tal_tau": 0.005}),
    "trl": Row("rde", {"rde.loss": "trl"}),
    "rde, sdm": Row("rde", {"rde.loss": "sdm"}),
    "bge": Row("rde", without("tse")),
    # At test half of its feature is BGE, which the towers alone have learned.
    "tse": Row("rde", without("bge")),
}
WEAK = {
    "weak itc": Row(
        "weak", without("local", "global", "consistency"), "64.69 / 54.24 / 54.60"
    ),
    "weak + local": Row(
        "weak", without("global", "consistency"), "69.04 / 58.45 / 56.30"
    ),
    "weak + global": Row(
        "weak", without("local", "consistency"), "67.56 / 58.51 / 55.90"
    ),
    "weak + both": Row("weak", without("consistency"), "70.20 / 60.30 / 57.25"),
    "weak exclude=self": Row("weak", {"weak.exclude": "self"}),
    "weak targets=union": Row("weak", {"weak.targets": "union"}),
    "weak same_image=linked": Row("weak", {"weak.same_image": "linked"}),
}
GROUPS = {
    "presets": PRESETS,
    "globals": GLOBAL,
    "locals": LOCAL,
    "explicit": EXPLICIT,
    "rde": RDE,
    "weak": WEAK,
}
ROWS = {name: row for group in GROUPS.values() for name, row in group.items()}
