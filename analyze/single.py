"""Stores of one modality, or of two with too few pairs to judge: what is said of features where no class can be told."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float
from scipy.sparse import csr_array

from thresher.analyze.battery.classes import DEAD, OK, RARE
from thresher.analyze.battery.robust import find_seeds, measure_stability, open_seeds
from thresher.analyze.battery.steps import StepSums, add_steps, find_centroid
from thresher.analyze.battery.study import FEATURES
from thresher.analyze.battery.tabulate import make_table
from thresher.analyze.context import Context
from thresher.analyze.derived import scale_features
from thresher.analyze.evaluate import ModalityResult
from thresher.analyze.functional.words import Words
from thresher.analyze.kinds import tabulate_kinds
from thresher.analyze.measure import Measured
from thresher.analyze.metrics.activity import ActivitySums, add_activity, count_fires
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
TOO_FEW = "too few pairs: not judged"


class Single(NamedTuple):
    """What was found about one dictionary whose features have no class."""

    features: Any
    """features.parquet, a pyarrow table."""
    groups: dict[str, Any]
    """The part `single` of metrics.json, plain values."""
    atoms: Float[np.ndarray, "feature d_in"]
    """Unit atoms."""
    codes: Mapping[str, csr_array]
    """The mean code of each item of each modality, for atoms of unit norm."""
    steps: Mapping[str, StepSums] | None


def describe_single(
    context: Context, name: str, trained: TrainedSAE, measured: Mapping[str, Measured], result: ModalityResult | None = None
) -> Single:
    """Activity, density, neighbours, stability over seeds and names of all features; rows of two modalities count together.

    `result` is the modality score of features where there are two.
    """
    dictionary = trained.sae.dictionary.detach().double().cpu().numpy()
    norm, atoms = np.linalg.norm(dictionary, axis=1), normalize_rows(dictionary)
    sums = functools.reduce(add_activity, [one.activity for one in measured.values()])
    columns = _tabulate_activity(context, measured, sums, norm)
    columns |= {} if result is None else _tabulate_modalities(measured, result, norm)
    near, cosine = find_nearest(atoms, columns["n_fire"] > 0, 1)
    columns["nearest"] = near[:, 0] if near.shape[1] else np.full(len(atoms), -1)
    columns["nearest_cosine"] = cosine[:, 0] if near.shape[1] else np.full(len(atoms), np.nan)
    columns |= _measure_stability(context, name, trained, sums, dictionary)
    steps = {modality: one.steps for modality, one in measured.items() if one.steps is not None}
    columns["step"] = find_centroid(functools.reduce(add_steps, steps.values())) if steps else np.full(len(atoms), np.nan)
    for one in measured.values():
        columns |= {} if one.kinds is None else tabulate_kinds(one.kinds, norm)
    if context.words is not None:
        columns |= _name(context, context.words, atoms)
    status = [str(one) for one in columns["status"]]
    energy = columns["energy_share"]
    groups = {
        "battery": NOT_APPLICABLE if result is None else TOO_FEW,
        "modality": " and ".join(measured),
        "statuses": {
            one: {"n": status.count(one), "energy": float(energy[[kind == one for kind in status]].sum())} for one in STATUSES
        },
        "seeds": {"others": find_seeds(name, context.inputs.saes)},
    }
    folder = None if context.scratch is None else context.scratch / name
    codes = {
        modality: scale_features(one.codes, norm, None if folder is None else folder / f"unit-{modality}")
        for modality, one in measured.items()
    }
    return Single(make_table(columns), groups, atoms, codes, steps or None)


def _tabulate_activity(
    context: Context, measured: Mapping[str, Measured], sums: ActivitySums, norm: np.ndarray
) -> dict[str, Any]:
    config = context.config
    records, rate = np.rint(sums.firing_records).astype(np.int64), sums.fires[0] / sums.rows[0]
    energy = sums.energy[0] / sums.rows[0] * norm**2
    codes = [sum_features(one.codes) for one in measured.values()]
    items = [sum_features(one.items) for one in measured.values()]
    ess = effective_sample_size(np.sum([one.energy for one in codes], axis=0), np.sum([one.fourth for one in codes], axis=0))
    is_rare = (records < config.thresholds.rare_below) | (np.nan_to_num(ess) < config.battery.ess_below)
    rules = [(records == 0, DEAD), (is_rare, RARE), (rate > config.battery.dense_above, DENSE)]
    fires = count_fires(sums)
    return {
        "feature": np.arange(len(norm)),
        "status": np.select([rule for rule, _ in rules], [one for _, one in rules], OK),
        "n_fire": fires,
        "n_item": np.sum([one.fires for one in items], axis=0),
        "n_record": records,
        "rate": rate,
        "ess": ess,
        "n_negative": np.rint(sums.n_negative).astype(np.int64),
        "energy": energy,
        "energy_share": energy / max(float(energy.sum()), np.finfo(np.float64).tiny),
        "mean_active": divide(sums.total * norm, fires),
        "largest": np.max([one.largest for one in items], axis=0) * norm,
    }


def _tabulate_modalities(measured: Mapping[str, Measured], result: ModalityResult, norm: np.ndarray) -> dict[str, Any]:
    """Columns of the first level of what the battery says, and of nothing that needs pairs."""
    columns: dict[str, Any] = {}
    for name, one in measured.items():
        sums = one.activity
        columns |= {
            f"n_fire_{name}": count_fires(sums),
            f"n_record_{name}": np.rint(sums.firing_records).astype(np.int64),
            f"rate_{name}": sums.fires[0] / sums.rows[0],
            f"energy_{name}": sums.energy[0] / sums.rows[0] * norm**2,
        }
    scores = result.scores
    return columns | {
        "mu_energy": scores.energy,
        "mu_energy_low": scores.energy_interval.low,
        "mu_energy_high": scores.energy_interval.high,
        "mu_count": scores.firing,
    }


def _measure_stability(
    context: Context, name: str, trained: TrainedSAE, sums: ActivitySums, dictionary: np.ndarray
) -> dict[str, Any]:
    inputs, seeds = context.inputs, context.config.battery.seeds.get(name, ())
    others = [inputs.saes[other] for other in find_seeds(name, inputs.saes)] + open_seeds(name, trained, seeds)
    atoms = [one.sae.dictionary.detach().double().cpu().numpy() for one in others]
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
