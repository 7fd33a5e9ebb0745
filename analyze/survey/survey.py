"""What is surveyed of each dictionary, and the files that hold it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from thresher.analyze.battery.steps import is_pursuit
from thresher.analyze.battery.study import EDGES, FEATURES, Finding
from thresher.analyze.context import Context
from thresher.analyze.kinds import tabulate_kinds
from thresher.analyze.measure import Measured
from thresher.analyze.metrics.pursuit import trace_pursuit
from thresher.analyze.survey.categories import survey_categories
from thresher.analyze.survey.columns import append_columns, tabulate_edge_meaning, tabulate_further
from thresher.analyze.survey.copies import count_merged
from thresher.analyze.survey.curves import draw_curves, tabulate_curves
from thresher.analyze.survey.dictionary import survey_dictionary
from thresher.analyze.survey.examples import compare_examples, list_examples
from thresher.analyze.survey.found import Surveyed
from thresher.analyze.survey.sample import Sample, encode_sample, list_prefixes, read_sample, to_numpy
from thresher.files import write_atomic
from thresher.runs import canonical_json
from thresher.train.checkpoint import TrainedSAE

SPACE, DICTIONARY, CURVES, CATEGORIES, EXAMPLES = (
    "space.json",
    "dictionary.json",
    "curves.parquet",
    "categories.parquet",
    "examples.parquet",
)
"""The first is of the run, the others of each dictionary."""


def survey(context: Context, trained: TrainedSAE, measured: Mapping[str, Measured], finding: Finding | None) -> Surveyed:
    """Encode at most 1000 rows of each modality again and measure what the pass over all rows does not."""
    store, panels, config = context.inputs.store, context.panels, context.config
    judged = None if finding is None else finding.judged
    rows = {name: read_sample(store, panel) for name, panel in panels.items()}
    samples = {name: encode_sample(trained, panels[name].hook_point, x) for name, x in rows.items()}
    at_k = {name: _vary_k(trained, panels[name].hook_point, x) for name, x in rows.items()}
    atoms = to_numpy(trained.sae.dictionary)
    followed = samples if is_pursuit(trained) else {}
    pursuits = {name: trace_pursuit(one.working, one.indices, one.values, atoms) for name, one in followed.items()}
    embeddings = None if context.study is None else context.study.embeddings
    points = draw_curves(samples, at_k, pursuits, judged, embeddings, config.seed)
    found = survey_dictionary(trained, samples, measured, judged, pursuits, config.seed)
    found["merged"] = None if judged is None else count_merged(judged.sides.dictionary, judged.classes)
    found["examples"] = None if judged is None or embeddings is None else compare_examples(judged, embeddings)
    tables: dict[str, Mapping[str, list[Any]]] = {
        CURVES: tabulate_curves(points),
        EXAMPLES: list_examples(trained, store, panels, measured),
    }
    items = {name: one.items for name, one in measured.items()}
    categories = survey_categories(context.presence, items, store.concepts, config.thresholds.min_items)
    found["categories"] = None if categories is None else categories.agreement
    if categories is not None:
        tables[CATEGORIES] = categories.columns
    if finding is None or context.study is None:
        return Surveyed(found, tables, {}, {})
    parents = {concept.parent for concept in store.concepts}
    is_leaf = np.array([concept.name not in parents for concept in store.concepts], dtype=bool)
    columns = tabulate_further(trained, samples, finding.judged, context.presence, is_leaf, context.study.settings)
    if (kinds := measured["text"].kinds) is not None:
        columns |= tabulate_kinds(kinds, np.linalg.norm(atoms, axis=1))
    return Surveyed(found, tables, columns, tabulate_edge_meaning(finding.judged, embeddings, finding.tables[EDGES]))


def add_columns(finding: Finding | None, found: Surveyed) -> Finding | None:
    """The finding with the columns of the survey in its tables."""
    if finding is None:
        return None
    tables = dict(finding.tables)
    tables[FEATURES] = append_columns(tables[FEATURES], found.features)
    tables[EDGES] = append_columns(tables[EDGES], found.edges)
    return finding._replace(tables=tables)


def write_survey(folder: Path, found: Surveyed) -> None:
    """Write the files of one dictionary."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / DICTIONARY, [canonical_json(found.dictionary)])
    for name, columns in found.tables.items():
        pq.write_table(pa.table(dict(columns)), folder / name)


def _vary_k(trained: TrainedSAE, hook_point: str, x: Tensor) -> dict[int, Sample]:
    """Samples encoded with 1, 2, 4, ... atoms up to twice those of training; none where training had no such number."""
    k = getattr(trained.config.sae, "k", None)
    if not isinstance(k, int):
        return {}
    chosen = sorted({*list_prefixes(min(2 * k, trained.sae.d_sae)), k})
    return {one: encode_sample(trained, hook_point, x, one) for one in chosen}
