"""What is in each image and caption: the source's ground truth, or the class of each image from a file."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from thresher.analyze.functional.held import Held
from thresher.analyze.functional.settings import Functional
from thresher.analyze.functional.words import read_vocabulary
from thresher.analyze.inputs import Inputs
from thresher.analyze.metrics.grouping import membership
from thresher.analyze.metrics.needs import normalize_rows
from thresher.analyze.panels import Panel
from thresher.analyze.truth import close_upward
from thresher.data.records import Concept
from thresher.data.store import Store
from thresher.errors import AnalysisError

PROMPTS, LEAST_PROMPTS = 64, 5
"""Captions averaged to the vector of a class, at most and at least."""
OTHER_TEXTS = 20_000
"""Captions of images that are not judged, looked at for it."""


class Family(NamedTuple):
    """Classes that exclude each other on the images that have one of them."""

    members: Int[np.ndarray, " class"]
    """Which labels they are."""
    label: Int[np.ndarray, " image"]
    """Position in `members`; -1 for images with none of them or several."""


class Labels(NamedTuple):
    """Ground truth of the judged items."""

    names: tuple[str, ...]
    parent: Int[np.ndarray, " label"]
    """-1 for none."""
    image: Bool[np.ndarray, "image label"]
    text: Bool[np.ndarray, "text label"]
    families: tuple[Family, ...]
    """For zero-shot classification; empty without class vectors."""
    vectors: Float[np.ndarray, "label d_in"] | None
    """Unit embeddings of the classes; zeros for labels of no family."""
    source: str
    """Where class vectors come from: `captions`, `vocabulary` or `none`."""

    def testable(self, image: np.ndarray, text: np.ndarray, least: int) -> Int[np.ndarray, " label"]:
        """Labels that at least so many of these images and of these texts have, and do not have."""
        counts = [np.minimum(one.sum(axis=0), (~one).sum(axis=0)) for one in (self.image[image], self.text[text])]
        return np.flatnonzero(np.minimum(*counts) >= least)


def find_labels(inputs: Inputs, panels: dict[str, Panel], held: Held, settings: Functional) -> Labels | None:
    """Labels by the configuration, else the ground truth of the store; None without either. Raises AnalysisError: files that do
    not fit.
    """
    if settings.labels is not None:
        return _read_labels(settings, inputs.store, panels, held)
    if not inputs.store.concepts:
        return None
    return _read_concepts(inputs, panels, held)


def check_labels(settings: Functional, store: Store, width: int) -> None:
    """Read the files of labels and classes before any work is done. Raises AnalysisError: files that do not fit."""
    if settings.labels is not None:
        words = None if settings.classes is None else read_vocabulary(settings.classes, width)
        _read_classes(settings.labels, store, None if words is None else words.words)


def _read_concepts(inputs: Inputs, panels: dict[str, Panel], held: Held) -> Labels:
    concepts = inputs.store.concepts
    halves = {"image": held.image, "text": held.text}
    present = {name: _look_up(inputs.store, panels[name], half.items) for name, half in halves.items()}
    names = tuple(concept.name for concept in concepts)
    parent = np.array([names.index(one.parent) if one.parent is not None else -1 for one in concepts], dtype=np.int64)
    vectors = _average_captions(inputs.store, panels["text"], panels["text"].items[held.text.items])
    has = np.linalg.norm(vectors, axis=1) > 0
    shared = np.array([concept.visibility == "shared" for concept in concepts])
    families: list[Family] = []
    for above in np.unique(parent[parent >= 0]):
        members = np.flatnonzero((parent == above) & has & shared)
        shown = present["image"][:, members]
        is_one = shown.sum(axis=1) == 1
        if len(members) > 1 and is_one.any():
            families.append(Family(members, np.where(is_one, shown.argmax(axis=1), -1)))
    return Labels(names, parent, present["image"], present["text"], tuple(families), vectors, "captions")


def _look_up(store: Store, panel: Panel, items: Int[np.ndarray, " item"]) -> Bool[np.ndarray, "item concept"]:
    return _close(store.items(panel.modality, columns=["concepts"]), panel.items[items], store.concepts)


def _close(table: Any, rows: Int[np.ndarray, " item"], concepts: Sequence[Concept]) -> Bool[np.ndarray, "item concept"]:
    stated = table["concepts"].take(pa.array(rows)).to_pylist()
    return close_upward([found or () for found in stated], concepts)


def _average_captions(store: Store, panel: Panel, judged: Int[np.ndarray, " text"]) -> Float[np.ndarray, "concept d_in"]:
    """The mean unit embedding of captions of other images that state a concept and none of its siblings; zeros with too few."""
    concepts = store.concepts
    item_of = np.asarray(store.item_of(panel.hook_point), dtype=np.int64)
    items = np.setdiff1d(np.unique(item_of), judged)[:OTHER_TEXTS]
    present = _close(store.items("text", columns=["concepts"]), items, concepts)
    parents = [concept.parent for concept in concepts]
    width = store.hook_points[panel.hook_point].width
    found = np.zeros((len(concepts), width))
    for index, parent in enumerate(parents):
        siblings = [other for other, one in enumerate(parents) if one == parent and other != index]
        chosen = items[present[:, index] & ~present[:, siblings].any(axis=1)][:PROMPTS]
        if parent is not None and len(chosen) >= LEAST_PROMPTS:
            rows = np.flatnonzero(np.isin(item_of, chosen))
            place = np.searchsorted(chosen, item_of[rows]).astype(np.int64)
            x = membership(place, len(chosen)) @ store.read_rows(panel.hook_point, rows).double().numpy()
            found[index] = normalize_rows(x).mean(axis=0)
    return normalize_rows(found)


def _read_labels(settings: Functional, store: Store, panels: dict[str, Panel], held: Held) -> Labels:
    assert settings.labels is not None, "the caller looked"
    width = held.image.x.shape[1]
    words = None if settings.classes is None else read_vocabulary(settings.classes, width)
    of_image, names = _read_classes(settings.labels, store, None if words is None else words.words)
    label = of_image[panels["image"].items[held.image.items]]
    n = len(names)
    image = label[:, None] == np.arange(n)
    vectors = None if words is None else normalize_rows(words.vectors)
    families = () if words is None or n < 2 else (Family(np.arange(n), label),)
    source = "none" if words is None else "vocabulary"
    return Labels(names, np.full(n, -1), image, image[held.text.group], families, vectors, source)


def _read_classes(path: Path, store: Store, names: tuple[str, ...] | None) -> tuple[Int[np.ndarray, " image"], tuple[str, ...]]:
    """The class of each image of the store, and the names of the classes."""
    n_images = store.items("image", columns=["key"]).num_rows
    try:
        found = _read_csv(path, store, names) if path.suffix == ".csv" else np.load(path, allow_pickle=False)
    except (OSError, ValueError, KeyError) as error:
        raise AnalysisError(
            f"{path}: the labels cannot be read ({error!r}); give an .npy or a CSV with key and label"
        ) from error
    if found.shape != (n_images,) or found.dtype.kind not in "iu":
        raise AnalysisError(
            f"{path}: {found.dtype} of shape {list(found.shape)}, expected whole numbers [{n_images}], one per image of "
            f"{store.path}"
        )
    n_classes = int(found.max(initial=-1)) + 1
    if names is None:
        return found.astype(np.int64), tuple(str(index) for index in range(n_classes))
    if n_classes > len(names):
        raise AnalysisError(f"{path}: class {n_classes - 1}, but functional.classes has {len(names)} words; give one per class")
    return found.astype(np.int64), names


def _read_csv(path: Path, store: Store, names: tuple[str, ...] | None) -> Int[np.ndarray, " image"]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = {row["key"]: row["label"] for row in csv.DictReader(file)}
    numbers = {} if names is None else {name: index for index, name in enumerate(names)}
    keys = store.items("image", columns=["key"])["key"].to_pylist()
    unknown = [key for key in rows if key not in set(keys)]
    if unknown:
        raise AnalysisError(f"{path}: {len(unknown)} keys are of no image of {store.path}, for instance {unknown[0]!r}")
    return np.array([_number(rows[key], numbers) if key in rows else -1 for key in keys], dtype=np.int64)


def _number(label: str, numbers: dict[str, int]) -> int:
    return numbers[label] if label in numbers else int(label)
