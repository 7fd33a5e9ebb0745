"""Stores of one modality: what is said of their features where nothing can be shared."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float
from scipy.sparse import csr_array, diags_array

from thresher.analyze.battery.classes import DEAD, OK, RARE
from thresher.analyze.battery.robust import find_seeds, measure_stability, open_seeds
from thresher.analyze.battery.steps import StepSums, find_centroid
from thresher.analyze.battery.study import FEATURES
from thresher.analyze.battery.tabulate import make_table
from thresher.analyze.context import Context
from thresher.analyze.functional.words import Words
from thresher.analyze.kinds import tabulate_kinds
from thresher.analyze.measure import Measured
from thresher.analyze.metrics.activity import count_fires
from thresher.analyze.metrics.energy import effective_sample_size
from thresher.analyze.metrics.naming import name_features
from thresher.analyze.metrics.needs import divide, normalize_rows
from thresher.analyze.site.layout import find_nearest
from thresher.analyze.statistics.features import sum_features
from thresher.train.checkpoint import TrainedSAE

DENSE = "dense"
STATUSES = (OK, DENSE, RARE, DEAD)
"""What a feature can be where there are no classes."""
NOT_APPLICABLE = "one modality: not applicable"


class Single(NamedTuple):
    """What was found about one dictionary on one modality."""

    modality: str
    features: Any
    """features.parquet, a pyarrow table."""
    groups: dict[str, Any]
    """The part `single` of metrics.json, plain values."""
    atoms: Float[np.ndarray, "feature d_in"]
    """Unit atoms."""
    codes: csr_array
    """The mean code of each item, for atoms of unit norm."""
    steps: StepSums | None


def describe_single(context: Context, name: str, trained: TrainedSAE, measured: Measured) -> Single:
    """Activity, density, neighbours, stability over seeds and names of all features."""
    dictionary = trained.sae.dictionary.detach().double().cpu().numpy()
    norm, atoms = np.linalg.norm(dictionary, axis=1), normalize_rows(dictionary)
    (modality,) = context.panels
    columns = _tabulate_activity(context, measured, norm)
    near, cosine = find_nearest(atoms, columns["n_fire"] > 0, 1)
    columns["nearest"] = near[:, 0] if near.shape[1] else np.full(len(atoms), -1)
    columns["nearest_cosine"] = cosine[:, 0] if near.shape[1] else np.full(len(atoms), np.nan)
    columns |= _measure_stability(context, name, trained, measured, dictionary)
    columns["step"] = np.full(len(atoms), np.nan) if measured.steps is None else find_centroid(measured.steps)
    columns |= {} if measured.kinds is None else tabulate_kinds(measured.kinds, norm)
    if context.words is not None:
        columns |= _name(context, context.words, atoms)
    status = [str(one) for one in columns["status"]]
    energy = columns["energy_share"]
    groups = {
        "battery": NOT_APPLICABLE,
        "modality": modality,
        "statuses": {
            one: {"n": status.count(one), "energy": float(energy[[kind == one for kind in status]].sum())} for one in STATUSES
        },
        "seeds": {"others": find_seeds(name, context.inputs.saes)},
    }
    codes = csr_array(measured.codes @ diags_array(norm))
    return Single(modality, make_table(columns), groups, atoms, codes, measured.steps)


def _tabulate_activity(context: Context, measured: Measured, norm: np.ndarray) -> dict[str, Any]:
    sums, config = measured.activity, context.config
    records, rate = np.rint(sums.firing_records).astype(np.int64), sums.fires[0] / sums.rows[0]
    energy = sums.energy[0] / sums.rows[0] * norm**2
    codes, items = sum_features(measured.codes), sum_features(measured.items)
    ess = effective_sample_size(codes.energy, codes.fourth)
    is_rare = (records < config.thresholds.rare_below) | (np.nan_to_num(ess) < config.battery.ess_below)
    rules = [(records == 0, DEAD), (is_rare, RARE), (rate > config.battery.dense_above, DENSE)]
    fires = count_fires(sums)
    return {
        "feature": np.arange(len(norm)),
        "status": np.select([rule for rule, _ in rules], [one for _, one in rules], OK),
        "n_fire": fires,
        "n_item": items.fires,
        "n_record": records,
        "rate": rate,
        "ess": ess,
        "n_negative": np.rint(sums.n_negative).astype(np.int64),
        "energy": energy,
        "energy_share": energy / max(float(energy.sum()), np.finfo(np.float64).tiny),
        "mean_active": divide(sums.total * norm, fires),
        "largest": items.largest * norm,
    }


def _measure_stability(
    context: Context, name: str, trained: TrainedSAE, measured: Measured, dictionary: np.ndarray
) -> dict[str, Any]:
    inputs, seeds = context.inputs, context.config.battery.seeds.get(name, ())
    others = [inputs.saes[other] for other in find_seeds(name, inputs.saes)] + open_seeds(name, trained, seeds)
    atoms = [one.sae.dictionary.detach().double().cpu().numpy() for one in others]
    sums = measured.activity
    is_signed = bool(sums.n_negative.any())
    found = measure_stability(dictionary, atoms, sums.energy[0], context.config.seed, is_signed=is_signed)
    none = np.full(len(dictionary), np.nan)
    return {"stability": none if found is None else found.cosine, "stability_null": none if found is None else found.null}


def _name(context: Context, words: Words, atoms: np.ndarray) -> dict[str, Any]:
    """By the atom alone: there is no gap to take out."""
    names, settings = name_features(atoms, words.vectors, 1), context.config.naming
    z, cosine = np.nan_to_num(names.z, nan=-np.inf), np.nan_to_num(names.cosine[:, 0], nan=-1.0)
    word = np.where((z >= settings.least_z) & (cosine >= settings.least_cosine), names.word[:, 0], -1)
    return {"name_atom": [words.words[index] if index >= 0 else None for index in word.tolist()], "name_atom_z": names.z}


def write_single(folder: Path, found: Single) -> None:
    """Write the table of one dictionary."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(found.features, folder / FEATURES)
