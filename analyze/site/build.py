"""The site of an analysis: pages, and the data they read."""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from thresher.analyze.battery.study import EDGES, FEATURES, Finding
from thresher.analyze.config import Site
from thresher.analyze.results import summary_table
from thresher.analyze.site.choose import N_BANDS, Chosen, choose_items
from thresher.analyze.site.dashboards import MODALITIES, Dictionary, describe_features, list_edges, tabulate
from thresher.analyze.site.explain import explain_pairs
from thresher.analyze.site.items import Book, Catalogue, measure_pictures
from thresher.analyze.site.layout import map_atoms
from thresher.analyze.site.shards import IMAGES_PER_SHARD, PER_SHARD, write_shard
from thresher.analyze.statistics.features import LOWEST, PER_OCTAVE

INDEX = "index.html"
MEGABYTE = 10**6
MOST_EDGES = 20_000
"""Edges that the graph of the whole dictionary can draw from; a feature's own page has all of its partners."""


class Facts(NamedTuple):
    """What the pages say about the whole analysis."""

    results: Mapping[str, Any]
    """metrics.json."""
    warnings: Sequence[Mapping[str, Any]]
    """warnings.json."""
    seed: int


def describe_dictionary(name: str, finding: Finding) -> Dictionary:
    """What the site shows of one dictionary."""
    sides = finding.judged.sides
    tables = finding.tables[FEATURES], finding.tables[EDGES]
    return Dictionary(
        name, *tables, finding.groups, sides.image.codes, sides.text.codes, sides.pairs, sides.dictionary, finding.steps
    )


def build(
    folder: Path, site: Site, facts: Facts, dictionaries: Sequence[Dictionary], catalogues: Mapping[str, Catalogue]
) -> Path:
    """Write the site into `folder` and return its first page. Equal analyses give equal files."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted(resources.files("thresher.analyze.site").joinpath("static").iterdir(), key=lambda one: one.name):
        (folder / source.name).write_bytes(source.read_bytes())
    same = {name: one.same() for name, one in catalogues.items()}
    books = {name: Book(one, same[name]) for name, one in catalogues.items()}
    chosen = choose(site, dictionaries, same, measure_pictures(catalogues["image"]))
    for one in dictionaries:
        _write_dictionary(folder, site, facts.seed, one, chosen[one.name], books)
    n_images = books["image"].write_images(folder, site.thumbnail)
    n_texts = books["text"].write_texts(folder)
    write_shard(folder, "run", _describe(facts, dictionaries) | {"n_items": [n_images, n_texts]})
    return folder / INDEX


def choose(
    site: Site,
    dictionaries: Sequence[Dictionary],
    same: Mapping[str, Int[np.ndarray, " item"]],
    sizes: Int[np.ndarray, " item"],
) -> dict[str, dict[str, list[Chosen]]]:
    """The items of all features; `sizes` are the bytes of the images.

    Fewer items each when the thumbnails would take more than the budget, the same number for all features and both modalities,
    so that pages stay comparable.
    """
    n_top, n_samples = site.items, site.samples
    while True:
        chosen = {
            one.name: {name: choose_items(getattr(one, name), same[name], n_top, n_samples) for name in MODALITIES}
            for one in dictionaries
        }
        shown = np.zeros(len(sizes), dtype=bool)
        for found in (feature for one in chosen.values() for feature in one["image"]):
            shown[np.concatenate([found.top, *found.bands])] = True
        # Thumbnails that are made smaller take less than this.
        if sizes[shown].sum() <= site.budget * MEGABYTE or n_top <= 1:
            return chosen
        n_top, n_samples = max(1, n_top * 2 // 3), n_samples * 2 // 3


def _write_dictionary(
    folder: Path, site: Site, seed: int, one: Dictionary, chosen: Mapping[str, Sequence[Chosen]], books: Mapping[str, Book]
) -> None:
    features = describe_features(one, chosen, books, site.nearest)
    for number, start in enumerate(range(0, len(features), PER_SHARD)):
        write_shard(folder, f"{one.name}/features-{number:04d}", features[start : start + PER_SHARD])
    write_shard(folder, f"{one.name}/table", {"columns": tabulate(one.features), "all": one.features.column_names})
    write_shard(folder, f"{one.name}/edges", list_edges(one.edges, MOST_EDGES))
    gap = np.asarray(one.image.mean(axis=0) - one.text.mean(axis=0)).ravel() @ one.atoms
    write_shard(folder, f"{one.name}/map", map_atoms(one.atoms, gap, one.alive(), with_umap=site.layout == "umap"))
    both = (books["image"], books["text"])
    write_shard(folder, f"{one.name}/pairs", explain_pairs((one.image, one.text), one.atoms, one.pairs, both, site.pairs, seed))


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
)
"""Keys of groups.json that the pages read."""
