"""All functional tests of one dictionary."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from thresher.analyze.battery.judge import Judged
from thresher.analyze.battery.study import FEATURES, Finding
from thresher.analyze.config import AnalyzeConfig
from thresher.analyze.context import Context
from thresher.analyze.functional import judge, names
from thresher.analyze.functional.behaviour import ablate_sets, flatten, make_score, measure_baselines
from thresher.analyze.functional.concepts import measure_bias, measure_class_plausibility, measure_cross_reconstruction
from thresher.analyze.functional.held import Held, hold
from thresher.analyze.functional.index import search_by_codes
from thresher.analyze.functional.labels import Labels, check_labels, find_labels
from thresher.analyze.functional.probes import choose_features, fit_maps, prepare_probes, probe_sparsely, transfer_probes
from thresher.analyze.functional.sets import list_sets
from thresher.analyze.functional.steer import choose_steered, steer
from thresher.analyze.functional.targeted import measure_targeted
from thresher.analyze.functional.tree import measure_precedence, score_tree
from thresher.analyze.functional.words import Words, read_vocabulary
from thresher.analyze.inputs import Inputs
from thresher.analyze.metrics.estimate import exact
from thresher.analyze.metrics.resample import Resample
from thresher.analyze.panels import Panel
from thresher.analyze.results import plain
from thresher.analyze.tables import write_rows
from thresher.analyze.truth import TruthScore
from thresher.files import write_atomic
from thresher.runs import canonical_json, fingerprint_file
from thresher.train.checkpoint import TrainedSAE

FUNCTIONAL, TABLE = "functional.json", "functional.csv"
STRINGS = ("name_atom", "name_image", "name_text", "judge_name")
NAMED = 1000
"""Images that features are named on when no other test wants any."""


class Tested(NamedTuple):
    """What functional tests found about one dictionary."""

    found: dict[str, Any]
    """functional.json; empty when none was asked for."""
    columns: dict[str, Any]
    """Columns of features.parquet (pyarrow arrays): names, null where there are none."""


def read_words_of(config: AnalyzeConfig, inputs: Inputs) -> Words | None:
    """The vocabulary, before any work is done; None when there is none. Raises AnalysisError: one of another encoder, or labels
    and classes that do not fit.
    """
    width = next(iter(inputs.saes.values())).d_in
    if "image" in inputs.hook_points:
        check_labels(config.functional, inputs.store, width)
    if config.naming.vocabulary is None:
        return None
    return read_vocabulary(config.naming.vocabulary, width)


def fingerprint_files(config: AnalyzeConfig) -> dict[str, str]:
    """Digests of the files that tests read besides store and checkpoints; of those that are there."""
    paths = {"functional.labels": config.functional.labels}
    for name, vocabulary in (
        ("naming.vocabulary", config.naming.vocabulary),
        ("functional.classes", config.functional.classes),
    ):
        if vocabulary is not None:
            paths |= {f"{name}.embeddings": vocabulary.embeddings, f"{name}.words": vocabulary.words}
    return {name: fingerprint_file(path) for name, path in paths.items() if path is not None and path.is_file()}


def run_tests(
    config: AnalyzeConfig,
    inputs: Inputs,
    panels: Mapping[str, Panel],
    trained: TrainedSAE,
    judged: Judged,
    truth: TruthScore | None,
    words: Words | None,
) -> Tested:
    """Run the tests that are asked for. Raises AnalysisError: labels or classes that do not fit, a judge that refuses."""
    wants = config.functional.images or (NAMED if words is not None or config.judge.url is not None else 0)
    resample = Resample(config.n_bootstrap, config.seed)
    held = hold(trained, inputs.store, panels, judged.sides, resample, wants)
    if held is not None and not len(choose_features(held)):
        held = None  # Nothing fires: there is nothing to ablate, to steer or to name.
    n_features = trained.sae.d_sae
    columns: dict[str, list[Any]] = {name: [None] * n_features for name in (*names.COLUMNS, *judge.COLUMNS)}
    found: dict[str, Any] = {}
    if held is not None and config.functional.images:
        found |= _test(config, inputs, dict(panels), trained, judged, truth, held)
    if held is not None and words is not None:
        named = names.name_all(held, words, config.naming, judged.classes)
        columns |= named.columns
        found["names"] = named.summary
    if held is not None and config.judge.url is not None:
        energy = list_sets(judged).energy
        cache = config.judge.cache or config.out.with_name(f"{config.out.name}.judge.jsonl")
        answers, summary = judge.judge_features(held, inputs.store, panels["text"], energy, config.judge, cache)
        columns |= answers
        found["judge"] = summary
    return Tested(plain(found), {name: _make_column(name, values) for name, values in columns.items()})


def add_tests(context: Context, name: str, finding: Finding, truth: TruthScore | None) -> tuple[Finding, dict[str, Any] | None]:
    """The finding with the columns of names, and what the tests found; None when there was nothing to test."""
    trained = context.inputs.saes[name]
    tested = run_tests(context.config, context.inputs, context.panels, trained, finding.judged, truth, context.words)
    table = finding.tables[FEATURES]
    for column, values in tested.columns.items():
        table = table.append_column(column, values)
    return finding._replace(tables={**finding.tables, FEATURES: table}), tested.found or None


def _test(
    config: AnalyzeConfig,
    inputs: Inputs,
    panels: dict[str, Panel],
    trained: TrainedSAE,
    judged: Judged,
    truth: TruthScore | None,
    held: Held,
) -> dict[str, Any]:
    settings = config.functional
    labels = find_labels(inputs, panels, held, settings)
    sets = list_sets(judged)
    score = make_score(held, labels, settings.logit_scale)
    probed = prepare_probes(held, labels)
    maps = fit_maps(probed.fitted, probed.features)
    found: dict[str, Any] = {
        "judged": {
            "images": exact(float(len(held.image.items)), len(held.image.items), "images"),
            "captions": exact(float(len(held.text.items)), len(held.text.items), "captions"),
        },
        "baselines": measure_baselines(held, labels, score),
        "sets": ablate_sets(held, labels, sets, score, settings.draws),
        "steering": steer(held, choose_steered(judged, settings.steered), sets.alive),
        "transfer": transfer_probes(probed, maps),
        "sparse_probing": probe_sparsely(probed),
        "search": search_by_codes(probed, maps),
        "cross_reconstruction": measure_cross_reconstruction(held),
    }
    if labels is not None:
        found["plausibility"] = measure_class_plausibility(held, labels)
        found["bias"] = measure_bias(probed)
        found["targeted"] = measure_targeted(probed, labels)
        if truth is not None and (labels.parent >= 0).any():
            found["tree"] = _follow_tree(inputs, panels, trained, truth, held, labels)
    return found


def _follow_tree(
    inputs: Inputs, panels: dict[str, Panel], trained: TrainedSAE, truth: TruthScore, held: Held, labels: Labels
) -> dict[str, Any]:
    halves = {"image": held.image, "text": held.text}
    concept = truth.matches.concept.astype(np.int64)
    return {
        name: score_tree(half, concept, labels.parent)
        | measure_precedence(trained, inputs.store, panels[name], half, concept, labels.parent)
        for name, half in halves.items()
    }


def _make_column(name: str, values: list[Any]) -> Any:
    return pa.array(values, pa.string() if name in STRINGS else pa.float64(), from_pandas=True)


def write_tests(folder: Path, found: Mapping[str, Any]) -> None:
    """functional.json, and every number of it as a line of functional.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / FUNCTIONAL, [canonical_json(found)])
    write_rows(folder / TABLE, flatten(found))
