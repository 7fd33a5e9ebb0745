"""What the pages say about single features."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array

from thresher.analyze.battery.steps import StepSums
from thresher.analyze.derived import find_alive
from thresher.analyze.site.choose import Chosen
from thresher.analyze.site.items import Book
from thresher.analyze.site.layout import find_nearest
from thresher.analyze.site.traces import Packed, Tracer
from thresher.analyze.statistics.features import sum_features

MODALITIES = ("image", "text")
# fmt: off
LISTED = (
    "feature", "class", "status", "is_dense", "name_image", "name_text", "concept", "concept_visibility", "class_expected",
    "n_record_image", "n_record_text", "rate_image", "rate_text", "energy_image", "energy_text", "mu_energy", "mu_energy_low",
    "mu_energy_high", "mu_count", "rho", "q", "partner", "partner_rho", "partner_cos", "is_mutual", "mms_z", "agreement",
    "margin_self", "margin_loo", "gap_share", "gap_cosine", "stability", "step_image", "step_text",
    "tokens", "name_atom", "n_fire", "n_item", "n_record", "rate", "ess", "energy", "energy_share", "mean_active", "largest",
    "nearest", "nearest_cosine", "step", "rate_image_tokens", "rate_text_tokens", "mu_tokens",
)
# fmt: on
"""Columns of features.parquet in the table of all features, where they exist; a feature's own page has all columns."""
STRINGS = frozenset(
    {"name_image", "name_text", "name_atom", "tokens", "concept", "concept_visibility", "class", "status", "class_expected"}
)


class Crossed(NamedTuple):
    """What there is between images and texts."""

    edges: Any
    """edges.parquet, a pyarrow table."""
    pairs: Int[np.ndarray, "pair 2"]


class Dictionary(NamedTuple):
    """What the site shows of one dictionary."""

    name: str
    features: Any
    """features.parquet, a pyarrow table."""
    groups: Mapping[str, Any]
    """groups.json; where features have no class, the part `single` of metrics.json."""
    codes: Mapping[str, csr_array]
    """Codes of the items of each modality [item, feature] for atoms of unit norm."""
    atoms: Float[np.ndarray, "feature d_in"]
    """Unit atoms."""
    crossed: Crossed | None
    """None with one modality, or with too few pairs to judge."""
    steps: Mapping[str, StepSums] | None
    """What each step of a pursuit codes, per modality."""
    ranked: Mapping[str, csr_array] = MappingProxyType({})
    """What items are ranked by, where that is not the codes: of items of many rows, the largest |z|."""
    tracer: Tracer | None = None
    """Gives codes row by row."""

    def alive(self) -> Bool[np.ndarray, " feature"]:
        """Which features fire at all."""
        return np.any([find_alive(codes) for codes in self.codes.values()], axis=0)

    def shown(self, modality: str) -> csr_array:
        """What the pages show of the items of a modality [item, feature]."""
        return self.ranked.get(modality, self.codes[modality])


def tabulate(features: Any, more: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """The table of all features, with `more` columns: numbers by column, strings as positions among the different ones."""
    columns = {name: features.column(name).to_pylist() for name in features.column_names} | dict(more)
    return {name: _shorten(columns[name], is_text=name in STRINGS) for name in LISTED if name in columns}


def _shorten(values: Sequence[Any], *, is_text: bool) -> Any:
    if not is_text:
        return values
    levels = sorted({value for value in values if value is not None})
    place = {value: index for index, value in enumerate(levels)}
    return {"levels": levels, "codes": [-1 if value is None else place[value] for value in values]}


def describe_features(
    dictionary: Dictionary,
    chosen: Mapping[str, Sequence[Chosen]],
    books: Mapping[str, Book],
    packed: Mapping[str, Sequence[Packed]],
    n_nearest: int,
) -> list[dict[str, Any]]:
    """One entry per feature: its row, its items, histograms, partners, nearest atoms and steps."""
    table = dictionary.features
    rows = list(zip(*(table.column(name).to_pylist() for name in table.column_names), strict=True))
    histograms = {name: sum_features(dictionary.shown(name)).histogram for name in dictionary.codes}
    partners = list_partners(dictionary.crossed, len(rows))
    near, cosine = find_nearest(dictionary.atoms, dictionary.alive(), n_nearest)
    return [
        {
            "row": row,
            "partners": partners[feature],
            "nearest": list(zip(near[feature].tolist(), cosine[feature].tolist(), strict=True)),
            "steps": _describe_steps(dictionary.steps, feature),
            **{
                name: _describe_items(chosen[name][feature], books[name], histograms[name][feature])
                | (_describe_traces(packed[name][feature]) if name in packed else {})
                for name in dictionary.codes
            },
        }
        for feature, row in enumerate(rows)
    ]


def _describe_items(chosen: Chosen, book: Book, histogram: np.ndarray) -> dict[str, Any]:
    used = np.flatnonzero(histogram)
    first, last = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)
    bands = zip(chosen.bands, chosen.band_codes, strict=True)
    return {
        "n": chosen.n,
        "top": [book.number(chosen.top), chosen.top_codes],
        "bands": [[book.number(band), codes] for band, codes in bands],
        "histogram": [first, histogram[first:last]],
    }


def _describe_traces(packed: Packed) -> dict[str, Any]:
    return {"traces": packed.traces, "largest": packed.largest}


def _describe_steps(steps: Mapping[str, StepSums] | None, feature: int) -> list[Any] | None:
    """Per modality the energy per row that the feature has at each step of the pursuit."""
    if steps is None:
        return None
    return [one.energy[:, feature] / max(one.n_rows, 1) for one in (steps[name] for name in MODALITIES if name in steps)]


def list_partners(crossed: Crossed | None, n_features: int) -> list[list[list[Any]]]:
    """Per feature its partners as an image feature and as a text feature, by falling rho.

    An entry is [partner, rho, cos, Bc, count, q, mutual].
    """
    found: list[list[list[Any]]] = [[[], []] for _ in range(n_features)]
    if crossed is None:
        return found
    edges = {name: crossed.edges.column(name).to_pylist() for name in crossed.edges.column_names}
    order = np.argsort(-np.array(edges["rho"], dtype=np.float64), kind="stable").tolist()
    for edge in order:
        i, j = edges["i"][edge], edges["j"][edge]
        told = [edges[name][edge] for name in ("rho", "cos", "Bc", "count", "q")]
        mutual = int(edges["mutual"][edge])
        found[i][0].append([j, *told, mutual])
        found[j][1].append([i, *told, mutual])
    return found


def list_edges(edges: Any, most: int) -> dict[str, Any]:
    """The graph's edges: those of the largest |Bc|, at most `most`, by column; `n` is how many there are in all."""
    columns = {name: edges.column(name).to_pylist() for name in ("i", "j", "rho", "Bc", "cos", "count", "q", "mutual")}
    weight = np.abs(np.array([value or 0.0 for value in columns["Bc"]], dtype=np.float64))
    kept = np.argsort(-weight, kind="stable")[:most].tolist()
    kinds = edges.column("class").to_pylist()
    levels = sorted(set(kinds))
    return {
        "n": len(kinds),
        "class": {"levels": levels, "codes": [levels.index(kinds[edge]) for edge in kept]},
        "columns": {
            name: [int(values[edge]) if name == "mutual" else values[edge] for edge in kept] for name, values in columns.items()
        },
    }
