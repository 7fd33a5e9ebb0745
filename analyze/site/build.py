"""The site of an analysis: pages, and the data they read."""

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from thresher.analyze.config import Site
from thresher.analyze.derived import average_rows
from thresher.analyze.results import summary_table
from thresher.analyze.site.choose import N_BANDS, Chosen, choose_items
from thresher.analyze.site.dashboards import MODALITIES, Dictionary, describe_features, list_edges, tabulate
from thresher.analyze.site.explain import explain_pairs
from thresher.analyze.site.find import find_images
from thresher.analyze.site.items import Book, Catalogue, measure_items, shows_items
from thresher.analyze.site.layout import map_atoms
from thresher.analyze.site.places import NO_TOKEN, Places
from thresher.analyze.site.shards import IMAGES_PER_SHARD, PER_SHARD, write_shard
from thresher.analyze.site.traces import Packed, pack_traces
from thresher.analyze.statistics.features import LOWEST, PER_OCTAVE

INDEX = "index.html"
MEGABYTE = 10**6
MOST_EDGES = 20_000
"""Edges that the graph of the whole dictionary can draw from; a feature's own page has all of its partners."""
TOKENS_IN_NAME = 3


class Facts(NamedTuple):
    """What the pages say about the whole analysis."""

    results: Mapping[str, Any]
    """metrics.json."""
    warnings: Sequence[Mapping[str, Any]]
    """warnings.json."""
    seed: int
    frame: float | None = None
    """Share of the shorter side of an image that the model sees as a square from its middle; None where it sees all."""


def build(
    folder: Path, site: Site, facts: Facts, dictionaries: Sequence[Dictionary], catalogues: Mapping[str, Catalogue]
) -> Path:
    """Write the site into `folder` and return its first page. Equal analyses give equal files."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted(resources.files("thresher.analyze.site").joinpath("static").iterdir(), key=lambda one: one.name):
        (folder / source.name).write_bytes(source.read_bytes())
    same = {name: one.same() for name, one in catalogues.items()}
    books = {name: Book(one, same[name]) for name, one in catalogues.items()}
    picture = catalogues["text"].picture if "text" in catalogues else None
    chosen = choose(site, dictionaries, same, {name: measure_items(one) for name, one in catalogues.items()}, picture)
    n_traced = sum(one.places is not None for one in catalogues.values()) * len(dictionaries)
    budget = site.traces * MEGABYTE // max(n_traced, 1)
    for one in dictionaries:
        found = chosen[one.name]
        packed = {
            name: pack_traces(one.tracer, name, found[name], budget)
            for name, catalogue in catalogues.items()
            if catalogue.places is not None and one.tracer is not None
        }
        places = catalogues["text"].places if "text" in packed else None
        tokens = {} if places is None else {"tokens": name_by_tokens(packed["text"], found["text"], places)}
        _write_dictionary(folder, site, facts.seed, one, _Shown(found, books, packed, tokens))
    pictures = None if picture is None else books["text"].number_pictures(books["image"])
    n_items = {name: book.write_items(folder, name, site.thumbnail) for name, book in books.items()}
    has_rows = {name: book.write_rows(folder, name, pictures if name == "text" else None) for name, book in books.items()}
    shows = {name: shows_items(one, name) for name, one in catalogues.items()}
    write_shard(folder, "run", _describe(facts, dictionaries) | {"n_items": n_items, "rows": has_rows, "shows": shows})
    return folder / INDEX


def choose(
    site: Site,
    dictionaries: Sequence[Dictionary],
    same: Mapping[str, Int[np.ndarray, " item"]],
    sizes: Mapping[str, Int[np.ndarray, " item"]],
    picture: Int[np.ndarray, " item"] | None = None,
) -> dict[str, dict[str, list[Chosen]]]:
    """The items of all features, by dictionary and modality; `sizes` are the bytes of the items, `picture`
    the image that is shown with each text, -1 for none.

    Fewer items each when they would take more than the budget, the same number for all features and both modalities, so that
    pages stay comparable.
    """
    limits = {"image": site.budget * MEGABYTE, "text": max(site.traces, 1) * MEGABYTE}
    n_top, n_samples = site.items, site.samples
    while True:
        chosen = {
            one.name: {name: choose_items(one.shown(name), same[name], n_top, n_samples) for name in one.codes}
            for one in dictionaries
        }
        # Thumbnails that are made smaller take less than this.
        shown = {name: _find_shown(chosen, name, len(sizes[name])) for name in sizes}
        if picture is not None:
            seen = picture[shown["text"]]
            shown["image"][seen[seen >= 0]] = True
        taken = {name: sizes[name][shown[name]].sum() for name in sizes}
        if n_top <= 1 or all(taken[name] <= limits[name] for name in taken):
            return chosen
        n_top, n_samples = max(1, n_top * 2 // 3), n_samples * 2 // 3


def name_by_tokens(packed: Sequence[Packed], chosen: Sequence[Chosen], places: Places) -> list[str | None]:
    """The commonest tokens on which each feature is strongest in its strongest texts; None where it has none."""
    ids = places.token_id
    if ids is None:
        return [None] * len(chosen)
    names: list[str | None] = []
    for one, found in zip(packed, chosen, strict=True):
        peaks = zip(found.top.tolist(), one.peaks, strict=False)
        tokens = [int(ids[places.starts[item] + peak]) for item, peak in peaks if peak >= 0]
        said = [
            places.pieces.get(token, f"[{token}]").strip() or repr(places.pieces[token])
            for token in tokens
            if token != NO_TOKEN
        ]
        names.append(", ".join(piece for piece, _ in Counter(said).most_common(TOKENS_IN_NAME)) or None)
    return names


class _Shown(NamedTuple):
    """What the pages of one dictionary show of items."""

    chosen: Mapping[str, Sequence[Chosen]]
    books: Mapping[str, Book]
    packed: Mapping[str, Sequence[Packed]]
    columns: Mapping[str, Sequence[Any]]
    """More columns of the table."""


def _find_shown(chosen: Mapping[str, Mapping[str, Sequence[Chosen]]], modality: str, n_items: int) -> np.ndarray:
    shown = np.zeros(n_items, dtype=bool)
    for found in (feature for one in chosen.values() for feature in one.get(modality, ())):
        shown[np.concatenate([found.top, *found.bands])] = True
    return shown


def _write_dictionary(folder: Path, site: Site, seed: int, one: Dictionary, shown: _Shown) -> None:
    features = describe_features(one, shown.chosen, shown.books, shown.packed, site.nearest)
    for number, start in enumerate(range(0, len(features), PER_SHARD)):
        write_shard(folder, f"{one.name}/features-{number:04d}", features[start : start + PER_SHARD])
    table = {"columns": tabulate(one.features, shown.columns), "all": one.features.column_names}
    write_shard(folder, f"{one.name}/table", table)
    crossed, gap = one.crossed, None
    if crossed is not None:
        image, text = (one.codes[name] for name in MODALITIES)
        gap = (average_rows(image) - average_rows(text)) @ one.atoms
        write_shard(folder, f"{one.name}/edges", list_edges(crossed.edges, MOST_EDGES))
        both = (shown.books["image"], shown.books["text"])
        pairs = explain_pairs((image, text), one.atoms, crossed.pairs, both, site.pairs, seed)
        write_shard(folder, f"{one.name}/pairs", pairs)
        found = find_images((image, text), crossed.pairs, both, site.pairs, seed)
        write_shard(folder, f"{one.name}/find", found)
    write_shard(folder, f"{one.name}/map", map_atoms(one.atoms, gap, one.alive(), with_umap=site.layout == "umap"))


def _describe(facts: Facts, dictionaries: Sequence[Dictionary]) -> dict[str, Any]:
    results = facts.results
    saes = {name: results["saes"][name] for name in results["order"]}
    return {
        "store": {key: results["store"][key] for key in ("model", "source", "fingerprint")},
        "held_out": results["held_out"],
        "thresholds": results["thresholds"],
        "battery": results["battery"],
        "calibration": results["calibration"],
        "n_bootstrap": results["n_bootstrap"],
        "warnings": facts.warnings,
        "summary": summary_table(results),
        "modalities": list(dictionaries[0].codes),
        "is_judged": dictionaries[0].crossed is not None,
        "order": [one.name for one in dictionaries],
        "all": list(saes),
        "saes": {
            name: {key: one[key] for key in ("architecture", "d_in", "d_sae", "reconstruction", "dead")}
            for name, one in saes.items()
        },
        "groups": {one.name: {key: one.groups.get(key) for key in GROUPS} for one in dictionaries},
        "sizes": {"features": PER_SHARD, "texts": PER_SHARD, "images": IMAGES_PER_SHARD},
        "bins": {"lowest": LOWEST, "per_octave": PER_OCTAVE},
        "n_bands": N_BANDS,
        "frame": facts.frame,
    }


GROUPS = (
    "classes",
    "gates",
    "counts",
    "energy_image",
    "energy_text",
    "margin",
    "margin_by_class",
    "gap",
    "histogram",
    "pairs",
    "near_duplicates",
    "meaning",
    "truth",
    "seeds",
    "alignment",
    "statuses",
)
"""Keys of groups.json that the pages read."""
