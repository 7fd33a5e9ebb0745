"""Single features to look at: the strongest images and captions side by side."""

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Int
from scipy.sparse import csc_array, csr_array

from thresher.analyze.config import Gallery
from thresher.analyze.evaluate import ModalityResult
from thresher.analyze.metrics.modality import IMAGE, SHARED, TEXT
from thresher.analyze.panels import Panel
from thresher.analyze.truth import TruthScore
from thresher.data.records import Concept


class Shown(NamedTuple):
    """One item a feature fires on."""

    text: str
    """The caption, or the key of the image."""
    picture: str
    """The image as a data URI; empty for captions and for stores without thumbnails."""
    strength: float
    """|z| relative to the feature's largest in this modality."""


class Card(NamedTuple):
    """One feature as the report shows it."""

    feature: int
    kind: str
    """Its class."""
    mu: float
    low: float
    high: float
    n_image: int
    n_text: int
    energy_share: float
    """Of the energy of all features."""
    concept: str
    """The concept it tracks best; empty when none."""
    visibility: str
    phi_image: float
    phi_text: float
    images: list[Shown]
    captions: list[Shown]


def choose_features(result: ModalityResult, settings: Gallery, rare_below: int) -> list[int]:
    """The features of most energy among the shared, the image-only and the text-only ones that are not rare."""
    chosen: list[int] = []
    by_energy = np.argsort(-result.energy, kind="stable")
    frequent = result.n_fires.sum(axis=0) >= rare_below
    for name, n in ((SHARED, settings.shared), (IMAGE, settings.one_sided), (TEXT, settings.one_sided)):
        members = by_energy[(result.classes[by_energy] == name) & frequent[by_energy]]
        chosen += [int(feature) for feature in members[:n]]
    return chosen


def make_cards(
    features: Sequence[int],
    result: ModalityResult,
    score: TruthScore | None,
    concepts: Sequence[Concept],
    items: Mapping[str, csr_array],
    panels: Mapping[str, Panel],
    tables: Mapping[str, Any],
    n_items: int,
    read_pictures: Callable[[Int[np.ndarray, " row"]], Sequence[bytes | None]],
) -> list[Card]:
    """Cards of features, with their strongest items; `read_pictures` gives the thumbnails of rows of the table of images."""
    by_feature = {name: csc_array(matrix[:, list(features)]) for name, matrix in items.items()}
    strong = [strongest(by_feature["image"], column, n_items)[0] for column in range(len(features))]
    rows = np.unique(panels["image"].items[np.concatenate([np.zeros(0, np.int64), *strong])])
    pictures = dict(zip(rows.tolist(), read_pictures(rows), strict=True))
    shown = {
        name: [
            _show(by_feature[name], column, panels[name], tables[name], n_items, pictures) for column in range(len(features))
        ]
        for name in items
    }
    total = result.energy.sum()
    cards: list[Card] = []
    for column, feature in enumerate(features):
        concept = int(score.matches.concept[feature]) if score is not None else -1
        phi = score.tracking.phi[:, feature, concept] if score is not None and concept >= 0 else (np.nan, np.nan)
        cards.append(
            Card(
                feature=feature,
                kind=str(result.classes[feature]),
                mu=float(result.scores.energy[feature]),
                low=float(result.scores.energy_interval.low[feature]),
                high=float(result.scores.energy_interval.high[feature]),
                n_image=int(result.n_fires[0, feature]),
                n_text=int(result.n_fires[1, feature]),
                energy_share=float(result.energy[feature] / total),
                concept=concepts[concept].name if concept >= 0 else "",
                visibility=concepts[concept].visibility if concept >= 0 else "",
                phi_image=float(phi[0]),
                phi_text=float(phi[1]),
                images=shown["image"][column],
                captions=shown["text"][column],
            )
        )
    return cards


def strongest(by_feature: csc_array, column: int, n: int) -> tuple[Int[np.ndarray, " item"], np.ndarray]:
    """Items of the largest entries of a column and those entries, largest first."""
    start, stop = by_feature.indptr[column], by_feature.indptr[column + 1]
    rows, values = np.asarray(by_feature.indices[start:stop]), np.asarray(by_feature.data[start:stop], dtype=np.float64)
    order = np.lexsort((rows, -values))[:n]
    return rows[order].astype(np.int64), values[order]


def find_first(texts: Sequence[str], n: int) -> list[int]:
    """Places of the first `n` different texts."""
    places: dict[str, int] = {}
    for place, text in enumerate(texts):
        places.setdefault(text, place)
    return list(places.values())[:n]


def _show(
    by_feature: csc_array, column: int, panel: Panel, table: Any, n: int, pictures: Mapping[int, bytes | None]
) -> list[Shown]:
    """The strongest items; of captions that are the same, such as keywords, one. `pictures` by rows of the table of images."""
    is_caption = "text" in table.column_names
    rows, values = strongest(by_feature, column, len(panel.items) if is_caption else n)
    if is_caption:
        first = find_first(table["text"].take(pa.array(panel.items[rows])).to_pylist(), n)
        rows, values = rows[first], values[first]
    places = panel.items[rows].tolist()
    seen = [None if is_caption else pictures[place] for place in places]
    found = table.take(pa.array(places, pa.int64())).to_pylist()
    return [
        Shown(_text_of(item), _picture_of(data), float(value / values[0]))
        for item, data, value in zip(found, seen, values, strict=True)
    ]


def _text_of(item: Mapping[str, Any]) -> str:
    return str(item.get("text") or item["key"])


def _picture_of(data: bytes | None) -> str:
    if not data:
        return ""
    return f"data:{_mime_type(data)};base64,{base64.b64encode(data).decode()}"


def _mime_type(data: bytes) -> str:
    if data.startswith(b"\x89PNG"):
        return "image/png"
    return "image/webp" if data[8:12] == b"WEBP" else "image/jpeg"
