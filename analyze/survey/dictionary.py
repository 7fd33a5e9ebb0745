"""dictionary.json: the atoms alone, and which of them are active together."""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from jaxtyping import Float
from scipy.sparse import csr_array, vstack

from thresher.analyze.battery.finite import control_histogram
from thresher.analyze.battery.judge import Judged
from thresher.analyze.measure import Measured
from thresher.analyze.metrics.angle import find_modality_subspace, share_in_subspace
from thresher.analyze.metrics.code_structure import measure_code_rank, measure_connectivity, measure_negative_interference
from thresher.analyze.metrics.dictionary import (
    compare_encoder,
    measure_coherence,
    measure_distance,
    measure_overlap,
    measure_ranks,
)
from thresher.analyze.metrics.needs import normalize_rows
from thresher.analyze.metrics.pursuit import Pursuit
from thresher.analyze.metrics.sparsity import measure_density, measure_rows
from thresher.analyze.results import plain
from thresher.analyze.survey.sample import Sample, to_numpy
from thresher.train.checkpoint import TrainedSAE

MOST_ATOMS = 8192
"""Atoms that are compared with each other; above, those of most energy."""
N_BINS = 40
SUBSPACE = 4
"""Directions of the modality subspace."""


def survey_dictionary(
    trained: TrainedSAE,
    samples: Mapping[str, Sample],
    measured: Mapping[str, Measured],
    judged: Judged | None,
    pursuits: Mapping[str, Pursuit],
    seed: int,
) -> dict[str, Any]:
    """Plain values; what needs both modalities is null without them."""
    atoms = normalize_rows(to_numpy(trained.sae.dictionary))
    kept = choose_atoms(samples)
    codes = csr_array(vstack([sample.codes for sample in samples.values()], format="csr"))
    coherence = measure_coherence(atoms[kept], N_BINS) if len(kept) > 1 else None
    encoder = getattr(trained.sae, "encoder", None)
    return plain(
        {
            "n_atoms": len(kept),
            "d_sae": len(atoms),
            "n_rows": {name: len(sample.x) for name, sample in samples.items()},
            "coherence": None if coherence is None else coherence.largest,
            "mean_nearest_cosine": None if coherence is None else coherence.nearest.mean(),
            "cosines": None if coherence is None else {"edges": np.linspace(-1, 1, N_BINS + 1), "n_pairs": coherence.histogram},
            "mean_squared_cosine": {"value": measure_overlap(atoms) if len(atoms) > 1 else None, "random": 1 / atoms.shape[1]},
            "rank": measure_ranks(atoms),
            "encoder_cosine": None if encoder is None else _median(compare_encoder(to_numpy(encoder), atoms)),
            "distance": {name: _describe_distance(atoms, sample) for name, sample in samples.items()},
            "code_rank": {name: measure_code_rank(sample.codes) for name, sample in samples.items()},
            "connectivity": measure_connectivity(codes),
            "negative_interference": measure_negative_interference(codes, atoms),
            "rows": {name: _describe_rows(sample.codes) for name, sample in samples.items()},
            "density": {name: _describe_density(one) for name, one in measured.items()},
            "modality_subspace": _describe_subspace(atoms, samples),
            "histogram_all": None if judged is None else _control(judged, seed),
            "pursuit": {name: {"largest_rise": one.rise} for name, one in pursuits.items()} or None,
        }
    )


def choose_atoms(samples: Mapping[str, Sample]) -> np.ndarray:
    """Atoms that are compared with each other: all, or the 8192 of most energy on the sampled rows."""
    energy = np.sum([np.asarray(sample.codes.power(2).sum(axis=0)) / len(sample.x) for sample in samples.values()], axis=0)
    return np.sort(np.argsort(-energy, kind="stable")[:MOST_ATOMS])


def _describe_distance(atoms: Float[np.ndarray, "d_sae d_in"], sample: Sample) -> dict[str, float]:
    """How far atoms that fire are from the nearest row, 1 - cos."""
    alive = np.unique(sample.codes.indices)
    if len(alive) == 0:
        return {"mean": float("nan"), "n_atoms": 0}
    return {"mean": float(measure_distance(atoms[alive], sample.working).mean()), "n_atoms": len(alive)}


def _describe_rows(codes: csr_array) -> dict[str, float]:
    """Means over rows with a code."""
    found = measure_rows(codes)
    return {name: float(np.nanmean(column)) for name, column in found._asdict().items() if np.isfinite(column).any()}


def _describe_density(measured: Measured) -> dict[str, float]:
    """Shares of all features that fire on more than 1 % and more than 10 % of the rows."""
    activity = measured.activity
    found = measure_density(activity.fires[0], activity.firing_records, float(activity.rows[0]))
    return {"above_1_percent": found.above_1_percent, "above_10_percent": found.above_10_percent}


def _describe_subspace(atoms: Float[np.ndarray, "d_sae d_in"], samples: Mapping[str, Sample]) -> dict[str, Any] | None:
    """Mean share of the alive atoms in the directions that tell the modalities apart; the rank / d_in of it is chance."""
    if len(samples) < 2:
        return None
    image, text = samples["image"].working, samples["text"].working
    if np.allclose(image.mean(axis=0), text.mean(axis=0)) or min(len(image), len(text)) < 2 or atoms.shape[1] < SUBSPACE:
        return None
    basis = find_modality_subspace(image, text, SUBSPACE)
    alive = np.unique(np.concatenate([sample.codes.indices for sample in samples.values()]))
    share = share_in_subspace(atoms[alive], basis)
    return {"rank": len(basis), "share": _median(share), "chance": len(basis) / atoms.shape[1]}


def _control(judged: Judged, seed: int) -> dict[str, Any]:
    """The histogram of every alive feature beside what its firings would give if dealt to the modalities at random."""
    sides = judged.sides
    found = control_histogram(sides.image.codes, sides.text.codes, 1, (0.1, 0.9), seed)
    return cast(dict[str, Any], plain(found))


def _median(values: np.ndarray) -> float | None:
    return float(np.nanmedian(values)) if np.isfinite(values).any() else None
