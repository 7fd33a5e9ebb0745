"""curves.parquet: one row per point of every curve of a dictionary."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from thresher.analyze.battery.judge import Judged
from thresher.analyze.battery.meaning import Embeddings
from thresher.analyze.metrics.code_structure import measure_active_babel
from thresher.analyze.metrics.dictionary import measure_babel
from thresher.analyze.metrics.energy import cumulate_energy
from thresher.analyze.metrics.progressive import trace_recovery
from thresher.analyze.metrics.pursuit import Pursuit, trace_code_rank
from thresher.analyze.metrics.sharing import measure_sharing
from thresher.analyze.metrics.similarity import measure_cknna
from thresher.analyze.metrics.stability import Matching, trace_stability
from thresher.analyze.survey.dictionary import choose_atoms
from thresher.analyze.survey.sample import Sample, list_prefixes

TOP = 5
"""Strongest features that items share or not."""
MOST_ITEMS = 2000
RANDOM_ROWS = 200
MOST_COMPARED, NEIGHBOURS = 300, 10
"""Rows whose neighbours are looked for, and how many; CKNNA depends on both."""


class Point(NamedTuple):
    """One point of a curve."""

    curve: str
    series: str
    x: float
    y: float | None
    n: int
    """Rows, atoms, features or pairs behind it."""


def draw_curves(
    samples: Mapping[str, Sample],
    at_k: Mapping[str, Mapping[int, Sample]],
    pursuits: Mapping[str, Pursuit],
    judged: Judged | None,
    embeddings: Embeddings | None,
    seed: int,
) -> list[Point]:
    """All points; `at_k` holds samples that were encoded with other numbers of atoms."""
    found = [point for name, sample in samples.items() for point in trace_sample(name, sample)]
    for name, by_k in at_k.items():
        for k, sample in by_k.items():
            recovered = trace_recovery(*sample[:5], [sample.values.shape[1]])
            found.append(make_point("test_time_fvu", name, k, recovered.fvu[0], len(sample.x)))
            found.append(make_point("test_time_cosine", name, k, recovered.cosine[0], len(sample.x)))
    for name, pursuit in pursuits.items():
        found += trace_picks(name, pursuit, len(samples[name].x))
    found += trace_babel(samples, seed)
    if judged is not None:
        found += [*trace_energy(judged), *trace_seeds(judged)]
    if judged is not None and embeddings is not None:
        found += trace_sharing(judged, embeddings)
    return found


def trace_sample(name: str, sample: Sample) -> Iterator[Point]:
    """Recovery and effective rank of the codes by the number of coefficients that are kept."""
    prefixes = list_prefixes(sample.values.shape[1])
    recovered = trace_recovery(*sample[:5], prefixes)
    for curve in ("fvu", "cosine", "dead"):
        for k, y in zip(prefixes, getattr(recovered, curve), strict=True):
            yield make_point(f"recovery_{curve}", name, k, y, len(sample.x))
    if len(sample.x) > NEIGHBOURS + 1:
        chosen = np.linspace(0, len(sample.x) - 1, min(len(sample.x), MOST_COMPARED)).astype(np.int64)
        for k in prefixes:
            kept = np.zeros((len(chosen), len(sample.dictionary)))
            np.add.at(kept, (np.arange(len(chosen))[:, None], sample.indices[chosen, :k]), sample.values[chosen, :k])
            yield make_point("recovery_cknna", name, k, measure_cknna(sample.x[chosen], kept, NEIGHBOURS), len(chosen))
    rank = trace_code_rank(sample.indices, sample.values, len(sample.dictionary), prefixes)
    for k, y in zip(prefixes, rank, strict=True):
        yield make_point("code_rank", name, k, y, len(sample.x))


def trace_picks(name: str, pursuit: Pursuit, n: int) -> Iterator[Point]:
    """Norm of what is left after each pick; shares of picks of an atom again and of negative ones, by step from 1."""
    for k, y in enumerate(pursuit.residual):
        yield make_point("pursuit_residual", name, k, y, n)
    for curve, values in (("pursuit_again", pursuit.again), ("pursuit_negative", pursuit.negative)):
        for step, y in enumerate(values):
            yield make_point(curve, name, step + 1, y, n)


def trace_babel(samples: Mapping[str, Sample], seed: int) -> Iterator[Point]:
    """The Babel function of the dictionary, of the atoms that rows select, and of as many atoms drawn by how often they fire.

    x is the number of other atoms: r for the dictionary, k - 1 for rows of k atoms.
    """
    any_sample = next(iter(samples.values()))
    width = max(sample.values.shape[1] for sample in samples.values())
    kept = choose_atoms(samples)
    sizes = [size for size in list_prefixes(max(width - 1, 1)) if size < len(kept)]
    if sizes:
        for size, y in zip(sizes, measure_babel(any_sample.dictionary[kept], sizes), strict=True):
            yield make_point("babel", "dictionary", size, y, len(kept))
    generator = np.random.default_rng(seed)
    for name, sample in samples.items():
        for k in [k for k in list_prefixes(sample.values.shape[1]) if k > 1]:
            selected = measure_active_babel(sample.indices[:, :k], sample.values[:, :k], sample.dictionary)
            yield make_point("babel", f"selected on {name}s", k - 1, float(selected.mean()), len(selected))
    fires = np.sum([np.bincount(s.codes.indices, minlength=len(s.dictionary)) for s in samples.values()], axis=0)
    n_alive = int((fires > 0).sum())
    for k in [k for k in list_prefixes(width) if 1 < k <= n_alive]:
        drawn = np.stack(
            [generator.choice(len(fires), k, replace=False, p=fires / fires.sum()) for _ in range(RANDOM_ROWS)]
        ).astype(np.int64)
        random = measure_active_babel(drawn, np.ones(drawn.shape), any_sample.dictionary)
        yield make_point("babel", "drawn at random", k - 1, float(random.mean()), RANDOM_ROWS)


def trace_energy(judged: Judged) -> Iterator[Point]:
    """Share of the energy in the features of most energy, at ranks 1, 2, ... with gaps that grow."""
    for name, side in (("image", judged.sides.image), ("text", judged.sides.text)):
        energy = side.activity.energy[0]
        share, n = cumulate_energy(energy), int((energy > 0).sum())
        for rank in _space(len(share)):
            yield make_point("energy", name, rank, share[rank - 1], n)


def trace_seeds(judged: Judged) -> Iterator[Point]:
    """Mean matched cosine with other seeds of the K features of most energy, and of random dictionaries."""
    if judged.stability is None:
        return
    energy = judged.sides.image.activity.energy[0] + judged.sides.text.activity.energy[0]
    compared = np.flatnonzero(np.isfinite(judged.stability.cosine))
    if len(compared) == 0:
        return
    tops, nothing = _space(len(compared)), np.full(len(compared), -1, dtype=np.int64)
    for series, cosine in (("other seeds", judged.stability.cosine), ("random dictionaries", judged.stability.null)):
        traced = trace_stability(Matching(nothing, cosine[compared]), energy[compared], tops)
        for top, y in zip(tops, traced, strict=True):
            yield make_point("stability", series, top, y, judged.stability.n_seeds)


def trace_sharing(judged: Judged, embeddings: Embeddings) -> Iterator[Point]:
    """Mean similarity of two items by how many of their five strongest features they share; matched pairs are left out."""
    chosen = np.linspace(0, len(embeddings.image_items) - 1, min(len(embeddings.image_items), MOST_ITEMS)).astype(np.int64)
    sides = judged.sides
    codes = {
        "image": csr_array(sides.image.codes[embeddings.image_items[chosen]]),
        "text": csr_array(sides.text.codes[embeddings.text_items[chosen]]),
    }
    vectors = {"image": embeddings.image[chosen], "text": embeddings.text[chosen]}
    for first, second in (("image", "image"), ("text", "text"), ("image", "text")):
        found = measure_sharing(codes[first], codes[second], vectors[first], vectors[second], TOP, is_paired=True)
        for shared, (y, n) in enumerate(zip(*found, strict=True)):
            yield make_point("shared_features", f"{first} and {second}", shared, y, int(n))


def tabulate_curves(points: Sequence[Point]) -> dict[str, list[Any]]:
    """Columns of curves.parquet."""
    return {field: [getattr(point, field) for point in points] for field in Point._fields}


def _space(n: int) -> list[int]:
    return sorted({round(float(rank)) for rank in np.geomspace(1, n, 120)})


def make_point(curve: str, series: str, x: float | int, y: float, n: int) -> Point:
    """A point with an undefined y as null."""
    return Point(curve, series, float(x), float(y) if np.isfinite(y) else None, n)
