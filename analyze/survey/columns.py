"""Further columns of features.parquet and edges.parquet: what other work reports of each feature, beside the verdicts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float
from scipy.sparse import csr_array

from thresher.analyze.battery.judge import Judged, Settings, interval, weigh_groups
from thresher.analyze.battery.meaning import Embeddings, sum_meaning
from thresher.analyze.battery.sides import Side
from thresher.analyze.derived import take_rows
from thresher.analyze.evidence import Present
from thresher.analyze.metrics.angle import find_modality_subspace, share_in_subspace
from thresher.analyze.metrics.dictionary import compare_encoder, measure_distance
from thresher.analyze.metrics.energy import measure_energies
from thresher.analyze.metrics.labels import count_labels, label_jaccard, measure_purity
from thresher.analyze.metrics.modality import tell_modality
from thresher.analyze.metrics.overlap import cofire_proportion, firing_entropy
from thresher.analyze.metrics.pairs import correlate_self, score_dominance
from thresher.analyze.metrics.semantics import measure_edges
from thresher.analyze.metrics.sparsity import FeatureSparsity, measure_density, measure_features
from thresher.analyze.metrics.universality import scale_latents
from thresher.analyze.statistics.crossmodal import add_dominance
from thresher.analyze.statistics.features import sum_features
from thresher.analyze.statistics.rows import release, shape_of, transpose
from thresher.analyze.survey.examples import make_folder
from thresher.analyze.survey.sample import Sample, to_numpy
from thresher.train.checkpoint import TrainedSAE

SUBSPACE = 4
"""Directions of the modality subspace."""
ENTRIES = 2**20
"""Codes whose spread is measured at once; a feature that has more is measured alone."""


def tabulate_further(
    trained: TrainedSAE,
    samples: Mapping[str, Sample],
    judged: Judged,
    presence: Mapping[str, Present],
    is_leaf: np.ndarray,
    settings: Settings,
) -> dict[str, Any]:
    """Columns of features.parquet, one entry per feature; NaN where a measure has no answer.

    `is_leaf` says of each concept of the ground truth whether it is nobody's parent: what lies above is on most items.
    """
    norm = np.linalg.norm(to_numpy(trained.sae.dictionary), axis=1)
    columns: dict[str, Any] = {}
    for name, side in (("image", judged.sides.image), ("text", judged.sides.text)):
        found = _describe_side(side, samples[name], judged.sides.dictionary, norm, make_folder(judged, f"features-{name}"))
        columns |= {f"{column}_{name}": values for column, values in found.items()}
    low, high = interval(correlate_self(judged.totals.sums.groups, weigh_groups(judged.totals, settings.resample)))
    columns |= {"rho_low": low, "rho_high": high}
    return columns | _describe_both(judged) | _describe_atoms(trained, samples) | _describe_labels(judged, presence, is_leaf)


def _describe_side(
    side: Side,
    sample: Sample,
    atoms: Float[np.ndarray, "d_sae d_in"],
    norm: Float[np.ndarray, " d_sae"],
    scratch: Path | None,
) -> dict[str, np.ndarray]:
    """What is measured of each modality alone; `atoms` have unit norm, `norm` is what they had."""
    activity, n = side.activity, float(side.activity.rows[0])
    energies = measure_energies(n, activity.total, activity.energy[0], activity.n_negative, np.sign(norm))
    spread = _measure_spread(side.codes, scratch) if len(side.record) > 1 else None
    nothing = np.full(len(norm), np.nan)
    # Codes are those of unit atoms; x has units of its own.
    unit = sample.dictionary / np.where(norm > 0, norm, 1)[:, None]
    residual = sample.x - sample.bias - sample.codes @ unit
    return {
        "energy_length": energies.length,
        "energy_square_length": energies.square_length,
        "entropy": nothing if spread is None else spread.entropy,
        "gini": nothing if spread is None else spread.gini,
        "rows_per_record": measure_density(activity.fires[0], activity.firing_records, n).rows_per_record,
        "distance": measure_distance(atoms, sample.working),
        # A row's residual plus the feature's own part is scaled by 1 plus what the residual says.
        "scaling": 1 + scale_latents(sample.codes, unit, residual),
    }


def _measure_spread(codes: csr_array, scratch: Path | None) -> FeatureSparsity:
    """`measure_features`, some features at a time: it needs all rows of a feature, and several times their memory."""
    by_feature = transpose(codes, scratch)
    n_features = shape_of(by_feature)[0]
    parts: list[FeatureSparsity] = []
    start = 0
    while start < n_features:
        stop = int(np.searchsorted(by_feature.indptr, by_feature.indptr[start] + ENTRIES, side="right")) - 1
        stop = min(max(stop, start + 1), n_features)
        parts.append(measure_features(csr_array(csr_array(by_feature[start:stop]).T.tocsr())))
        release(by_feature)
        start = stop
    return FeatureSparsity(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _describe_both(judged: Judged) -> dict[str, np.ndarray]:
    """What compares the modalities."""
    image, text = sum_features(judged.sides.image.codes), sum_features(judged.sides.text.codes)
    sums = judged.totals.sums
    dominance = add_dominance(judged.sides.image.codes, judged.sides.text.codes, judged.sides.pairs)
    cofires = cofire_proportion(sums.cofires, np.stack([sums.image_fires, sums.text_fires]))
    return {
        "modality_auc": tell_modality(image.histogram, image.n_rows, text.histogram, text.n_rows).auc,
        "dominance": score_dominance(dominance),
        "firing_entropy": firing_entropy(np.stack([image.fires / image.n_rows, text.fires / text.n_rows])),
        "cofire_image": cofires[0],
        "cofire_text": cofires[1],
    }


def _describe_atoms(trained: TrainedSAE, samples: Mapping[str, Sample]) -> dict[str, np.ndarray]:
    atoms = to_numpy(trained.sae.dictionary)
    encoder = getattr(trained.sae, "encoder", None)
    nothing = np.full(len(atoms), np.nan)
    image, text = samples["image"].working, samples["text"].working
    basis = None if is_one_place(image, text) else find_modality_subspace(image, text, SUBSPACE)
    return {
        "encoder_cosine": nothing if encoder is None else compare_encoder(to_numpy(encoder), atoms),
        "subspace_share": nothing if basis is None else share_in_subspace(atoms, basis),
    }


def is_one_place(image: Float[np.ndarray, "_ d_in"], text: Float[np.ndarray, "_ d_in"]) -> bool:
    """Whether nothing tells the modalities apart, or there are too few rows or dimensions to say."""
    few = min(len(image), len(text)) < 2 or image.shape[1] <= SUBSPACE
    return few or np.allclose(image.mean(axis=0), text.mean(axis=0))


def _describe_labels(judged: Judged, presence: Mapping[str, Present], is_leaf: np.ndarray) -> dict[str, np.ndarray]:
    """Purity and label Jaccard by ground truth, on one item per record."""
    nothing = np.full(len(judged.classes), np.nan)
    if not presence:
        return {"purity_image": nothing, "purity_text": nothing, "label_jaccard": nothing}
    purity: dict[str, np.ndarray] = {}
    counts: list[np.ndarray] = []
    totals: list[np.ndarray] = []
    for name, side in (("image", judged.sides.image), ("text", judged.sides.text)):
        one = presence[name]
        codes, present = csr_array(side.codes[one.kept]), one.concepts[:, is_leaf]
        purity[f"purity_{name}"] = measure_purity(codes, present).share
        counts.append(count_labels(codes, present.astype(np.float64)))
        totals.append(present.sum(axis=0).astype(np.float64))
    return purity | {"label_jaccard": label_jaccard(counts[0], counts[1], totals[0], totals[1])}


def tabulate_edge_meaning(judged: Judged, embeddings: Embeddings | None, edges: Any) -> dict[str, Any]:
    """Column `mms` of edges.parquet: do the two ends mean the same? Null where nothing judges meaning."""
    i, j = (np.asarray(edges[name].to_numpy(), dtype=np.int64) for name in ("i", "j"))
    if embeddings is None:
        return {"mms": np.full(len(i), np.nan)}
    image = sum_meaning(
        take_rows(judged.sides.image.codes, embeddings.image_items, make_folder(judged, "meaning-image")), embeddings.image
    )
    text = sum_meaning(
        take_rows(judged.sides.text.codes, embeddings.text_items, make_folder(judged, "meaning-text")), embeddings.text
    )
    return {"mms": measure_edges(image, text, i, j)}


def append_columns(table: Any, columns: Mapping[str, Any]) -> Any:
    """A pyarrow table with further columns; NaN becomes null."""
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values, from_pandas=True))
    return table
