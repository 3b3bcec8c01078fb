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

PUBLISHED: dict[str, tuple[Published, ...]] = {
    "cuhk_pedes": (
        Published(_ZERO_SHOT, _LOGS, 12.557, 27.128, 35.445, 11.485, 4.614),
        Published(_TUNED, _IRRA, 68.19, mAP=61.12),
        Published("IRRA", _IRRA, 73.38, mAP=66.13),
        Published("TBPS-CLIP", _TBPS, 73.54, mAP=65.38),
        Published("FMFA, from CLIP", _FMFA, 74.16, mAP=66.66),
        Published("RDE, from CLIP", _RDE, 75.94, mAP=67.56),
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
        Published("MVR + HAM", _RECENT, 70.52),
    ),
    "rstp_reid": (
        Published(_ZERO_SHOT, _LOGS, 12.600, 34.000, 46.500, 10.123, 2.659),
        Published(_TUNED, _IRRA, 54.05, mAP=43.41),
        Published("IRRA", _IRRA, 60.20, mAP=47.17),
        Published("FMFA, from CLIP", _FMFA, 61.05, mAP=48.22),
        Published("TBPS-CLIP", _TBPS, 61.95, mAP=48.26),
        Published("RDE, from CLIP", _RDE, 65.35, mAP=50.88),
        Published("FMFA, from HAM", _FMFA, 71.80, mAP=55.72),
        Published("MVR + HAM", _RECENT, 73.75),
    ),
}


def published(dataset: str, *, queries: int, gallery: int) -> tuple[Published, ...]:
    """Return the known results on a data set's test split, worst R1 first.

    Args:
        dataset: Name of a reader, with or without the prefix "tfds:".
        queries: Number of captions measured.
        gallery: Number of images measured.

    Returns:
        The results; none if the sizes are not those of the test split.
    """
    name = dataset.removeprefix("tfds:")
    if TEST_SIZES.get(name) != (queries, gallery):
        return ()
    return PUBLISHED[name]
