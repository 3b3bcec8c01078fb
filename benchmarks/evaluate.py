# SPDX-License-Identifier: Apache-2.0
r"""Retrieval metrics: counting in blocks versus sorting the whole matrix.

    python -m benchmarks.evaluate                 # 20k x 20k, the size of ICFG-PEDES
    python -m benchmarks.evaluate --case million  # 1M pictures, 1k captions

The peer does in PyTorch what the field's official code does: the full similarity
matrix, `torch.argsort` of every full row, then the figures from the sorted ids. It
takes the figures some rows at a time, which spares it several int64 matrices. Each
candidate runs in its own process with its own peak of memory, and the processes take
turns. CPU s, which all cores together spend, hardly changes when the machine has other
work.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import common


@dataclass(frozen=True)
class Case:
    """The numbers of captions, pictures and people; other pictures show strangers.

    Attributes:
        queries: Number of captions.
        gallery: Number of pictures.
        persons: Number of people with captions.
        each: Number of pictures of each of them.
        peer_queries: Number of captions on which the peer is measured.
    """

    queries: int
    gallery: int
    persons: int
    each: int
    peer_queries: int


CASES = {
    "icfg": Case(20_000, 20_000, 1000, 20, 20_000),
    "million": Case(1000, 1_000_000, 1000, 20, 100),
}
WIDTH = 512
_FIGURES_AT_ONCE = 500


def main() -> None:
    """Print the table of one case."""
    parser = common.parser(__doc__)
    parser.add_argument("--case", choices=CASES, default="icfg")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=_CANDIDATES, help="one candidate, as JSON")
    options = parser.parse_args()
    if options.only:
        common.answer(_CANDIDATES[options.only](CASES[options.case]))
        return
    flags = common.flags(options, "case")
    found = common.children(
        "benchmarks.evaluate", _CANDIDATES, *flags, repeats=options.repeats
    )
    _compare(CASES[options.case], found)


def features(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return captions and pictures around a centre for each person, and their ids."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((case.persons, WIDTH), np.float32)
    known = case.persons * case.each
    gallery = rng.standard_normal((case.gallery, WIDTH), np.float32)
    gallery_ids = np.arange(case.gallery) % known % case.persons
    gallery_ids[known:] = case.persons + np.arange(case.gallery - known)
    gallery *= 3
    gallery[:known] += centres[gallery_ids[:known]]
    query_ids = np.arange(case.queries) % case.persons
    query = centres[query_ids]
    query += 3 * rng.standard_normal(query.shape, np.float32)
    return query, gallery, query_ids, gallery_ids


def ours(case: Case) -> dict[str, float]:
    """Count; the first call compiles, the later ones are like those in training."""
    from fmfa_jax.evaluation import retrieval_metrics

    arguments = features(case)
    base, start = common.peak_gb(), _stamp()
    metrics = retrieval_metrics(*arguments)
    first, first_cpu = np.subtract(_stamp(), start).tolist()
    seconds = common.timed(lambda: retrieval_metrics(*arguments), 3)
    seconds |= {"first": first, "first_cpu": first_cpu}
    return seconds | {"base_gb": base} | metrics.as_dict()


def peer(case: Case) -> dict[str, float]:
    """Sort, timing the product, the argsort and the figures separately."""
    import torch

    device = common.torch_device()
    query, gallery, query_ids, gallery_ids = (
        torch.from_numpy(array).to(device) for array in features(case)
    )
    query, query_ids = query[: case.peer_queries], query_ids[: case.peer_queries]
    base = common.peak_gb()
    stamps = [_stamp()]
    query = torch.nn.functional.normalize(query)
    similarity = query @ torch.nn.functional.normalize(gallery).T
    stamps.append(_stamp())
    order = torch.argsort(similarity, dim=1, descending=True)
    stamps.append(_stamp())
    figures = _sorted_figures(order, query_ids, gallery_ids)
    stamps.append(_stamp())
    scale = case.queries / case.peer_queries
    wall, cpu = scale * np.diff(stamps, axis=0).T
    times = {"seconds": wall.sum(), "product": wall[0], "sort": wall[1]}
    times |= {"cpu_seconds": cpu.sum(), "product_cpu": cpu[0], "sort_cpu": cpu[1]}
    return {k: float(v) for k, v in times.items()} | {"base_gb": base} | figures


def _stamp() -> tuple[float, float]:
    """Return the seconds so far, and those that this process's cores have spent."""
    common.wait()
    return time.perf_counter(), time.process_time()


def _sorted_figures(order: Any, query_ids: Any, gallery_ids: Any) -> dict[str, float]:
    """Return the five figures in percent from the sorted gallery indices."""
    import torch

    sums = torch.zeros(5, dtype=torch.float64, device=order.device)
    for first in range(0, len(order), _FIGURES_AT_ONCE):
        rows = slice(first, first + _FIGURES_AT_ONCE)
        match = gallery_ids[order[rows]] == query_ids[rows, None]
        found = match.cumsum(1)
        ranks = torch.arange(1, match.shape[1] + 1, device=order.device)
        total = found[:, -1]
        for k, place in enumerate((1, 5, 10)):
            sums[k] += (found[:, place - 1] > 0).sum()
        sums[3] += ((found / ranks * match).sum(1) / total).sum()
        last = (match * ranks).amax(1)
        sums[4] += (total / last).sum()
    percent = (100 * sums / len(order)).tolist()
    return dict(zip(("r1", "r5", "r10", "mAP", "mINP"), percent, strict=True))


def _compare(case: Case, found: dict[str, dict[str, float]]) -> None:
    mine, other = found["ours"], found["peer"]
    seconds = {
        "torch, product alone": (other["product"], other["product_cpu"]),
        "torch, argsort alone": (other["sort"], other["sort_cpu"]),
        "torch, all of it": (other["seconds"], other["cpu_seconds"]),
        "ours, first call (compiles)": (mine["first"], mine["first_cpu"]),
        "ours, all of it": (mine["seconds"], mine["cpu_seconds"]),
    }
    peaks = dict.fromkeys(seconds, mine) | dict.fromkeys(list(seconds)[:3], other)
    rows = [
        (
            name,
            f"{taken:.2f}",
            f"{taken / mine['seconds']:.1f}",
            f"{cpu:.1f}",
            f"{cpu / mine['cpu_seconds']:.1f}",
            f"{peaks[name]['peak_gb']:.2f}",
            f"{peaks[name]['base_gb']:.2f}",
            f"{peaks[name]['r1']:.2f} / {peaks[name]['mAP']:.2f}",
        )
        for name, (taken, cpu) in seconds.items()
    ]
    notes = [
        "Peak: peak memory of the process, in GB (10^9 bytes); before: the same before"
        " the metrics began, with features and libraries in memory."
    ]
    if case.peer_queries < case.queries:
        notes.append(
            f"torch was measured on {case.peer_queries} captions, which its figures are"
            f" for; its seconds are multiplied by"
            f" {case.queries / case.peer_queries:.0f}."
        )
    common.show(
        f"Retrieval metrics, {case.queries} captions x {case.gallery} pictures",
        ("", "seconds", "x ours", "CPU s", "x ours", "peak GB", "before", "R1 / mAP"),
        rows,
        notes=notes,
    )


_CANDIDATES = {"ours": ours, "peer": peer}

if __name__ == "__main__":
    main()
