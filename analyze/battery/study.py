"""The battery on the dictionaries of one analysis: what they share, what is found about each, and the files of each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from thresher.analyze.battery.calibrate import calibrate
from thresher.analyze.battery.classes import CLASSES
from thresher.analyze.battery.expect import expect_classes, score_expected
from thresher.analyze.battery.headline import summarize
from thresher.analyze.battery.judge import Judged, Settings, judge
from thresher.analyze.battery.meaning import Embeddings
from thresher.analyze.battery.robust import describe_stability, find_seeds, measure_stability, open_seeds
from thresher.analyze.battery.sides import Side, make_sides
from thresher.analyze.battery.sources import Judges, find_embeddings
from thresher.analyze.battery.steps import StepSums, follow_residuals, tabulate_steps
from thresher.analyze.battery.tabulate import make_table, tabulate_edges, tabulate_features, tabulate_truth
from thresher.analyze.config import AnalyzeConfig
from thresher.analyze.inputs import Inputs
from thresher.analyze.measure import Measured
from thresher.analyze.metrics.resample import Resample
from thresher.analyze.panels import Panel
from thresher.analyze.results import plain
from thresher.analyze.statistics.alignment import judge_alignments
from thresher.analyze.statistics.crossmodal import Items, measure_crossmodal
from thresher.analyze.statistics.features import sum_features
from thresher.analyze.statistics.file import save_sums
from thresher.analyze.truth import Rule, TruthScore
from thresher.data.records import Modality
from thresher.data.store import Store
from thresher.files import write_atomic
from thresher.runs import canonical_json
from thresher.train.checkpoint import TrainedSAE

FEATURES, EDGES, STEPS, GROUPS = "features.parquet", "edges.parquet", "steps.parquet", "groups.json"
"""Files of one dictionary, beside its sums."""
MODALITIES: tuple[Modality, Modality] = ("image", "text")


class Study(NamedTuple):
    """What is the same for every dictionary."""

    settings: Settings
    pairs: Int[np.ndarray, "pair 2"]
    """Positions among the items of the image panel and of the text panel."""
    embeddings: Embeddings | None
    calibration: dict[str, Any] | None


class Finding(NamedTuple):
    """What was found about one dictionary."""

    judged: Judged
    groups: dict[str, Any]
    """groups.json, plain values."""
    tables: Mapping[str, Any]
    """pyarrow tables by file name."""
    steps: Mapping[str, StepSums] | None = None
    """What each step of a pursuit codes, per modality; None where codes have no order."""


def find_pairs(store: Store, panels: Mapping[str, Panel]) -> Int[np.ndarray, "pair 2"]:
    """The pairs whose image and text are both held out, as positions in the panels; empty without two modalities."""
    if len(panels) < 2:
        return np.zeros((0, 2), dtype=np.int64)
    pairs = store.pairs()
    places: list[np.ndarray] = []
    for column, name in enumerate(MODALITIES):
        place = np.full(store.items(name, columns=["key"]).num_rows, -1)
        place[panels[name].items] = np.arange(len(panels[name].items))
        places.append(place[pairs[:, column]])
    found = np.stack(places, axis=1)
    return found[(found >= 0).all(axis=1)].astype(np.int64)


def prepare(config: AnalyzeConfig, inputs: Inputs, panels: Mapping[str, Panel], resample: Resample) -> Study | None:
    """Pairs, embeddings and the calibration; None when too few images have a caption for any gate but the first.

    Raises AnalysisError: embeddings that do not fit.
    """
    pairs = find_pairs(inputs.store, panels)
    n_images = len(np.unique(pairs[:, 0]))
    if n_images < config.battery.least_pairs:
        return None
    settings = Settings(config.thresholds, config.battery, resample)
    embeddings = find_embeddings(inputs, panels, config.battery, config.seed)
    n_pairs = min(n_images, config.battery.calibration_pairs)
    calibration = calibrate(n_pairs, settings) if n_pairs else None
    return Study(settings, pairs, embeddings, calibration)


def examine(
    study: Study,
    name: str,
    inputs: Inputs,
    panels: Mapping[str, Panel],
    measured: Mapping[str, Measured],
    truth: TruthScore | None,
    scratch: Path | None = None,
) -> Finding:
    """Judge one dictionary and make its files; codes and what is made of them lie in `scratch`, if given."""
    trained = inputs.saes[name]
    judged = _judge(study, name, inputs, panels, measured, scratch)
    groups: dict[str, Any] = summarize(judged, study.settings)
    groups["meaning"] = study.embeddings.source if study.embeddings is not None else "none"
    groups["pairs"] = {"n": len(study.pairs), "n_images": judged.totals.sums.n_images}
    codes = judged.sides.image.codes, judged.sides.text.codes
    pairing, dictionary = judged.totals.pairing, judged.sides.dictionary
    items = Items(*codes, study.pairs, judged.sides.image.record, dictionary, pairing)
    groups["crossmodal"] = measure_crossmodal(items, study.settings.resample.seed)
    groups["alignment"] = judge_alignments(items, study.settings.resample.seed)
    groups["seeds"] = describe_stability(judged.stability) | {"others": find_seeds(name, inputs.saes)}
    groups["calibration"] = study.calibration
    steps = {modality: one.steps for modality, one in measured.items() if one.steps is not None}
    columns = tabulate_features(judged, steps or None)
    if truth is not None:
        limits = study.settings.thresholds
        rule = Rule(limits.min_score, limits.alpha, limits.min_items)
        expected = expect_classes(truth.tracking, inputs.store.concepts, judged.activation.gate, rule)
        groups["truth"] = score_expected(judged.classes, expected)
        columns |= tabulate_truth(truth, expected, inputs.store.concepts)
    tables = {FEATURES: make_table(columns), EDGES: make_table(tabulate_edges(judged, study.settings))}
    if len(steps) == 2:
        items = Judges(panels, study.settings.resample.seed).items
        residuals = follow_residuals(trained, inputs.store, panels, items)
        table = tabulate_steps(steps["image"], steps["text"], residuals, judged.classes, judged.sides.dictionary)
        tables[STEPS] = make_table(table)
    return Finding(judged, plain(groups), tables, steps or None)


def _judge(
    study: Study,
    name: str,
    inputs: Inputs,
    panels: Mapping[str, Panel],
    measured: Mapping[str, Measured],
    scratch: Path | None,
) -> Judged:
    trained, resample = inputs.saes[name], study.settings.resample
    dictionary = _read_dictionary(trained)
    sides = {modality: Side(one.codes, panels[modality].record, one.activity) for modality, one in measured.items()}
    n_records = next(iter(panels.values())).n_records
    made = make_sides(sides["image"], sides["text"], study.pairs, dictionary, n_records, scratch)
    others = [inputs.saes[other] for other in find_seeds(name, inputs.saes)]
    others += open_seeds(name, trained, study.settings.battery.seeds.get(name, ()))
    energy = made.image.activity.energy[0] + made.text.activity.energy[0]
    is_signed = bool((made.image.activity.n_negative + made.text.activity.n_negative).any())
    stability = measure_stability(
        dictionary, [_read_dictionary(one) for one in others], energy, resample.seed, is_signed=is_signed
    )
    return judge(made, study.embeddings, stability, study.settings)


def _read_dictionary(trained: TrainedSAE) -> Float[np.ndarray, "feature d_in"]:
    return trained.sae.dictionary.detach().double().cpu().numpy()


def compare_seeds(groups: Mapping[str, dict[str, Any]]) -> None:
    """Add to each dictionary the mean and range of its headline shares over it and those that differ by seed alone."""
    for name, own in groups.items():
        members = [groups[other] for other in (name, *own["seeds"]["others"]) if other in groups]
        if len(members) > 1:
            own["seeds"]["shares"] = {key: _describe_spread([_pick(one, key) for one in members]) for key in _headline_keys()}


def _headline_keys() -> Sequence[str]:
    shares = [f"{group}.{name}" for group in ("energy_image", "energy_text", "margin_by_class", "gap") for name in CLASSES]
    return [*(f"margin.{part}" for part in ("total", "shared_self", "shared_cross", "bridged", "rest")), *shares]


def _pick(groups: Mapping[str, Any], key: str) -> float | None:
    group, name = key.split(".")
    return groups[group][name]["value"]


def _describe_spread(values: Sequence[float | None]) -> dict[str, Any]:
    found = [value for value in values if value is not None]
    if not found:
        return {"mean": None, "least": None, "most": None, "n": 0, "unit": "seeds"}
    return {"mean": float(np.mean(found)), "least": min(found), "most": max(found), "n": len(found), "unit": "seeds"}


def write_finding(folder: Path, finding: Finding, origin: Mapping[str, Any]) -> None:
    """Write the files of one dictionary; `origin` says what its sums were made from."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in finding.tables.items():
        pq.write_table(table, folder / name)
    if STEPS not in finding.tables:
        (folder / STEPS).unlink(missing_ok=True)
    write_atomic(folder / GROUPS, [canonical_json(finding.groups)])
    sides = {"image": finding.judged.sides.image, "text": finding.judged.sides.text}
    features = {name: sum_features(side.codes) for name, side in sides.items()}
    save_sums(folder, features, finding.judged.totals.sums, origin)
