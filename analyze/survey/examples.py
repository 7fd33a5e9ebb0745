"""examples.parquet: the items of the largest codes of every feature; and whether those of a feature are about one thing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from thresher.analyze.battery.judge import Judged
from thresher.analyze.battery.meaning import Embeddings
from thresher.analyze.derived import take_rows
from thresher.analyze.measure import Measured
from thresher.analyze.metrics.semantics import compare_groups, compare_tops
from thresher.analyze.panels import Panel
from thresher.analyze.statistics.examples import find_examples
from thresher.analyze.survey.sample import to_numpy
from thresher.data.store import Store
from thresher.train.checkpoint import TrainedSAE

TOP = 8
"""Items of each modality per feature."""
MOST_CONCEPTS = 1024
"""Features whose items are compared with each other's, those of most energy."""


def list_examples(
    trained: TrainedSAE, store: Store, panels: Mapping[str, Panel], measured: Mapping[str, Measured]
) -> dict[str, Any]:
    """Columns of examples.parquet: at most TOP items of each feature and modality, the strongest first; none for dead ones."""
    norm = np.linalg.norm(to_numpy(trained.sae.dictionary), axis=1)
    parts: list[dict[str, Any]] = []
    for name, one in measured.items():
        found = find_examples(one.codes, TOP)
        feature, rank = np.nonzero((found.row >= 0) & (norm > 0)[:, None])
        item = panels[name].items[found.row[feature, rank]]
        key = store.items(panels[name].modality, columns=["key"])["key"].take(pa.array(item)).to_pylist()
        modality = [name] * len(feature)
        code = found.value[feature, rank] * norm[feature]
        parts.append({"feature": feature, "modality": modality, "rank": rank, "item": item, "key": key, "code": code})
    columns: dict[str, Any] = {}
    for column in parts[0]:
        columns[column] = [value for part in parts for value in part[column]]
    return columns


def make_folder(judged: Judged, name: str) -> Path | None:
    """Where codes of that name lie; None for memory."""
    return None if judged.sides.scratch is None else judged.sides.scratch / name


def compare_examples(judged: Judged, embeddings: Embeddings) -> dict[str, float | int] | None:
    """Mean similarity of a feature's strongest images and captions, and of those of different features (VL-SAE's intra- and
    inter-similarity, arXiv 2510.21323); of features with TOP judged items on both sides. None for fewer than two.
    """
    codes = {
        "image": take_rows(judged.sides.image.codes, embeddings.image_items, make_folder(judged, "examples-image")),
        "text": take_rows(judged.sides.text.codes, embeddings.text_items, make_folder(judged, "examples-text")),
    }
    rows = {name: find_examples(one, TOP).row for name, one in codes.items()}
    full = np.flatnonzero((rows["image"][:, -1] >= 0) & (rows["text"][:, -1] >= 0))
    if len(full) < 2:
        return None
    energy = judged.sides.image.activity.energy[0] + judged.sides.text.activity.energy[0]
    kept = full[np.argsort(-energy[full], kind="stable")[:MOST_CONCEPTS]]
    similarity = compare_tops(embeddings.image[rows["image"][kept]], embeddings.text[rows["text"][kept]])
    intra, inter = compare_groups(similarity)
    return {"intra": intra, "inter": inter, "n": len(kept), "items": TOP}
