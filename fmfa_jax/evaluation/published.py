# SPDX-License-Identifier: Apache-2.0
"""Published text-to-image results on the test splits of public data sets."""

from dataclasses import dataclass

_LOGS = "training logs of FMFA's authors"
_RECENT = "best known in 2026, mixed training data"


@dataclass(frozen=True)
class Published:
    """A published result in percent; None if the source omits it."""

    method: str
    source: str
    r1: float
    r5: float | None = None
    r10: float | None = None
    mAP: float | None = None
    mINP: float | None = None

    @property
    def rSum(self) -> float | None:
        """R1 + R5 + R10 where all three are known."""
        if self.r5 is None or self.r10 is None:
            return None
        return self.r1 + self.r5 + self.r10


TEST_SIZES: dict[str, tuple[int, int]] = {
    "cuhk_pedes": (6156, 3074),
    "icfg_pedes": (19848, 19848),
    "rstp_reid": (2000, 1000),
}
"""Captions and images of each test split; numbers are comparable only on these."""

_ZERO_SHOT = "CLIP ViT-B/16, zero-shot"
_TUNED = "CLIP, fine-tuned"
_IRRA, _FMFA = "IRRA (CVPR 2023)", "FMFA (arXiv 2509.13754)"
_RDE, _TBPS = "RDE (CVPR 2024)", "TBPS-CLIP (AAAI 2024)"
_ITSELF, _ICL = "ITSELF (arXiv 2601.01024)", "ICL's own table"

PUBLISHED: dict[str, tuple[Published, ...]] = {
    "cuhk_pedes": (
        Published(_ZERO_SHOT, _LOGS, 12.557, 27.128, 35.445, 11.485, 4.614),
        Published(_TUNED, _IRRA, 68.19, mAP=61.12),
        Published("IRRA", _IRRA, 73.38, mAP=66.13),
        Published("TBPS-CLIP", _TBPS, 73.54, mAP=65.38),
        Published("FMFA, from CLIP", _FMFA, 74.16, mAP=66.66),
        Published("RDE, from CLIP", _RDE, 75.94, mAP=67.56),
        Published("ITSELF, from CLIP", _ITSELF, 76.95, mAP=69.38),
        Published("FMFA, from HAM", _FMFA, 77.46, mAP=68.89),
        Published("Bi-IRRA", _RECENT, 79.43),
    ),
    "icfg_pedes": (
        Published(_ZERO_SHOT, _LOGS, 6.938, 18.108, 24.985, 2.489, 0.210),
        Published(_TUNED, _IRRA, 56.74, mAP=31.84),
        Published("IRRA", _IRRA, 63.46, mAP=38.06),
        Published("FMFA, from CLIP", _FMFA, 64.29, mAP=39.43),
        Published("TBPS-CLIP", _TBPS, 65.05, mAP=39.83),
        Published("RDE, from CLIP", _RDE, 67.68, mAP=40.06),
        Published("FMFA, from HAM", _FMFA, 68.37, mAP=41.76),
        Published("ITSELF, from CLIP", _ITSELF, 69.23, mAP=43.80),
        Published("MVR + HAM", _RECENT, 70.52),
    ),
    "rstp_reid": (
        Published(_ZERO_SHOT, _LOGS, 12.600, 34.000, 46.500, 10.123, 2.659),
        Published(_TUNED, _IRRA, 54.05, mAP=43.41),
        Published("IRRA", _IRRA, 60.20, mAP=47.17),
        Published("FMFA, from CLIP", _FMFA, 61.05, mAP=48.22),
        Published("TBPS-CLIP", _TBPS, 61.95, mAP=48.26),
        Published("RDE, from CLIP", _RDE, 65.35, mAP=50.88),
        Published("ITSELF, from CLIP", _ITSELF, 67.30, mAP=53.05),
        Published("FMFA, from HAM", _FMFA, 71.80, mAP=55.72),
        Published("MVR + HAM", _RECENT, 73.75),
    ),
}


CROSS_DOMAIN: dict[tuple[str, str], tuple[Published, ...]] = {
    ("cuhk_pedes", "icfg_pedes"): (
        Published("IRRA", _ITSELF, 42.41, mAP=21.77),
        Published("CLIP, fine-tuned", _ITSELF, 43.04, mAP=22.45),
        Published("RDE", _ITSELF, 48.18, mAP=25.00),
        Published("ICL", _ICL, 48.57, mAP=25.30),
        Published("ITSELF", _ITSELF, 50.58, mAP=27.32),
    ),
    ("cuhk_pedes", "rstp_reid"): (
        Published("CLIP, fine-tuned", _ITSELF, 52.55, mAP=39.97),
        Published("IRRA", _ITSELF, 53.25, mAP=39.63),
        Published("RDE", _ITSELF, 54.90, mAP=41.27),
        Published("ICL", _ICL, 55.80, mAP=42.09),
        Published("ITSELF", _ITSELF, 58.05, mAP=43.72),
    ),
    ("icfg_pedes", "cuhk_pedes"): (
        Published("IRRA", _ITSELF, 33.48, mAP=31.56),
        Published("CLIP, fine-tuned", _ITSELF, 33.90, mAP=31.65),
        Published("RDE", _ITSELF, 38.11, mAP=34.16),
        Published("ITSELF", _ITSELF, 41.05, mAP=37.79),
        Published("ICL", _ICL, 42.87, mAP=38.19),
    ),
    ("icfg_pedes", "rstp_reid"): (
        Published("IRRA", _ITSELF, 45.30, mAP=36.82),
        Published("CLIP, fine-tuned", _ITSELF, 47.45, mAP=36.83),
        Published("RDE", _ITSELF, 49.25, mAP=38.46),
        Published("ITSELF", _ITSELF, 51.30, mAP=41.07),
        Published("ICL", _ICL, 52.50, mAP=41.82),
    ),
    ("rstp_reid", "cuhk_pedes"): (
        Published("IRRA", _ITSELF, 32.80, mAP=30.29),
        Published("CLIP, fine-tuned", _ITSELF, 35.25, mAP=32.35),
        Published("RDE", _ITSELF, 36.94, mAP=33.65),
        Published("ITSELF", _ITSELF, 40.32, mAP=36.78),
        Published("ICL", _ICL, 41.31, mAP=36.78),
    ),
    ("rstp_reid", "icfg_pedes"): (
        Published("IRRA", _ITSELF, 32.30, mAP=20.54),
        Published("CLIP, fine-tuned", _ITSELF, 33.58, mAP=19.58),
        Published("RDE", _ITSELF, 42.17, mAP=26.37),
        Published("ITSELF", _ITSELF, 43.32, mAP=27.57),
        Published("ICL", _ICL, 45.93, mAP=28.89),
    ),
}
"""(Trained on, tested on) -> results, none of the test set's people in training."""


def published(
    dataset: str, *, queries: int, gallery: int, trained_on: str = ""
) -> tuple[Published, ...]:
    """Return the known results on a data set's test split, worst R1 first.

    Args:
        dataset: Name of a reader, with or without the prefix "tfds:".
        queries: Number of captions measured.
        gallery: Number of images measured.
        trained_on: Name of the data set that was learned from; "" for this one.

    Returns:
        The results; none if the sizes are not those of the test split.
    """
    name, source = (each.removeprefix("tfds:") for each in (dataset, trained_on))
    if TEST_SIZES.get(name) != (queries, gallery):
        return ()
    if source in ("", name):
        return PUBLISHED[name]
    return CROSS_DOMAIN.get((source, name), ())
