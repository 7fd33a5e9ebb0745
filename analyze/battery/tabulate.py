"""The tables of one dictionary, in the columns of docs/analysis.md."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from thresher.analyze.battery.classes import BRIDGED, SHARED
from thresher.analyze.battery.expect import NOTHING
from thresher.analyze.battery.headline import find_bridges
from thresher.analyze.battery.judge import Judged, Settings, interval
from thresher.analyze.battery.pairing import control, measure_found
from thresher.analyze.battery.steps import StepSums, find_centroid
from thresher.analyze.metrics.modality import ratio
from thresher.analyze.metrics.needs import divide
from thresher.analyze.truth import TruthScore
from thresher.data.records import Concept


def tabulate_features(judged: Judged, steps: Mapping[str, StepSums] | None) -> dict[str, Any]:
    """Columns of features.parquet up to level 5, one entry per feature."""
    none = np.full(len(judged.classes), np.nan)
    gates = judged.gates
    return {
        "feature": np.arange(len(judged.classes)),
        "class": judged.classes,
        **_tabulate_activation(judged),
        **_tabulate_pairing(judged),
        **_tabulate_meaning(judged),
        **_tabulate_margin(judged),
        "gate_causal": gates.causal,
        "stability": none if judged.stability is None else judged.stability.cosine,
        "stability_null": none if judged.stability is None else judged.stability.null,
        "gap_cosine": judged.gaps.cosine,
        "gap_share": judged.gaps.gap.share,
        "step_image": none if steps is None else find_centroid(steps["image"]),
        "step_text": none if steps is None else find_centroid(steps["text"]),
        "gate_robustness": gates.robustness,
    }


def _tabulate_activation(judged: Judged) -> dict[str, Any]:
    found, scores = judged.activation, judged.activation.scores
    is_dead = found.records.sum(axis=0) == 0
    signed = bool(found.n_negative.any())
    return {
        "status": found.status,
        "is_dense": found.is_dense,
        "n_fire_image": found.fires[0],
        "n_fire_text": found.fires[1],
        "n_record_image": found.records[0],
        "n_record_text": found.records[1],
        "rate_image": found.rate[0],
        "rate_text": found.rate[1],
        "n_negative": found.n_negative,
        "ess": found.ess,
        "energy_image": found.energy[0],
        "energy_text": found.energy[1],
        "mean_image": found.mean[0],
        "mean_text": found.mean[1],
        "mu_energy": scores.energy,
        "mu_energy_low": scores.energy_interval.low,
        "mu_energy_high": scores.energy_interval.high,
        "mu_count": scores.firing,
        "mu_count_low": scores.firing_interval.low,
        "mu_count_high": scores.firing_interval.high,
        "mu_mean": np.full(len(is_dead), np.nan) if signed else ratio(found.mean[0], found.mean[1]),
        "gate_activation": [None if dead else str(gate) for dead, gate in zip(is_dead, found.gate, strict=True)],
    }


def _tabulate_pairing(judged: Judged) -> dict[str, Any]:
    sums, own, partner = judged.totals.sums, judged.pairings.own, judged.pairings.partner
    either = sums.image_fires + sums.text_fires - sums.cofires
    expected = sums.image_fires * sums.text_fires / max(sums.n_pairs, 1)
    margins = judged.margins
    return {
        "n_pair_image": sums.image_fires,
        "n_pair_text": sums.text_fires,
        "n_pair_both": sums.cofires,
        "rho": own.rho,
        "jaccard": divide(sums.cofires, either),
        "lift": divide(sums.cofires, expected),
        "p": own.p,
        "q": judged.pairings.own_q,
        "partner": partner.feature,
        "partner_rho": partner.rho,
        "partner_cos": judged.pairings.partner_cosine,
        "partner_p": partner.p,
        "partner_q": partner.q,
        "is_mutual": partner.is_mutual,
        "margin_row": divide(margins.as_image[0], margins.total[0]),
        "margin_column": divide(margins.as_text[0], margins.total[0]),
        "margin_self": divide(margins.own[0], margins.total[0]),
        "gate_pairing": judged.gates.pairing,
    }


def _tabulate_meaning(judged: Judged) -> dict[str, Any]:
    found, none = judged.meanings, np.full(len(judged.classes), np.nan)
    if found is None:
        columns: dict[str, Any] = dict.fromkeys(
            ("ms_image", "ms_image_z", "ms_text", "ms_text_z", "mms", "mms_z", "agreement"), none
        )
    else:
        columns = {
            "ms_image": found.image.score,
            "ms_image_z": found.image.z,
            "ms_text": found.text.score,
            "ms_text_z": found.text.z,
            "mms": found.across.score,
            "mms_z": found.across.z,
            "agreement": found.agreement,
        }
    return columns | {"gate_meaning": judged.gates.meaning}


def _tabulate_margin(judged: Judged) -> dict[str, Any]:
    total = judged.margins.total[0]
    low, high = interval(judged.margins.left_out)
    ends = np.sort(np.stack([divide(low, total), divide(high, total)]), axis=0)
    return {
        "margin_loo": divide(judged.margins.left_out[0], total),
        "margin_loo_low": ends[0],
        "margin_loo_high": ends[1],
    }


def tabulate_truth(score: TruthScore, expected: np.ndarray, concepts: Sequence[Concept]) -> dict[str, Any]:
    """Columns of ground truth."""
    found = score.matches.concept
    phi = np.where(found >= 0, score.tracking.phi[:, np.arange(len(found)), found], np.nan)
    return {
        "concept": [concepts[i].name if i >= 0 else None for i in found],
        "concept_visibility": [concepts[i].visibility if i >= 0 else None for i in found],
        "phi_image": phi[0],
        "phi_text": phi[1],
        "class_expected": [str(name) if name != NOTHING else None for name in expected],
    }


def tabulate_edges(judged: Judged, settings: Settings) -> dict[str, Any]:
    """Columns of edges.parquet, sorted by i, then j."""
    partners, dictionary = judged.pairings.partners, judged.sides.dictionary
    edges, best = measure_found(judged.totals, partners.edges), partners.best
    sums = judged.totals.sums
    n = float(sums.n_pairs)
    cosine = np.einsum("ij,ij->i", dictionary[edges.i], dictionary[edges.j])
    image, text = sums.groups.image.sum(axis=0) / n, sums.groups.text.sum(axis=0) / n
    bridge = (edges.product - image[edges.i] * text[edges.j]) * cosine
    bridges = set(zip(*(side.tolist() for side in find_bridges(judged, settings)), strict=True))
    classes = judged.classes
    kinds = [_name_edge(i, j, bridges, classes) for i, j in zip(edges.i.tolist(), edges.j.tolist(), strict=True)]
    return {
        "i": edges.i,
        "j": edges.j,
        "rho": edges.rho,
        "A": edges.product,
        "Bc": divide(bridge, judged.margins.total[0]),
        "cos": cosine,
        "count": edges.cofires,
        "p": edges.p,
        "q": control(edges.p, partners.n_candidates[0] * partners.n_candidates[1]),
        "mutual": (best.text_of_image[edges.i] == edges.j) & (best.image_of_text[edges.j] == edges.i),
        "class": kinds,
    }


def _name_edge(i: int, j: int, bridges: set[tuple[int, int]], classes: np.ndarray) -> str:
    if i == j:
        return "self"
    if (i, j) in bridges and any(classes[one] in BRIDGED for one in (i, j)):
        return "bridge"
    return "shared" if classes[i] == classes[j] == SHARED else "other"


def make_table(columns: Mapping[str, Any]) -> Any:
    """A pyarrow table; NaN becomes null, and so does None."""
    return pa.table({name: pa.array(values, from_pandas=True) for name, values in columns.items()})
