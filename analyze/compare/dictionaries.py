"""Every two dictionaries: the same atoms, the same features?"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from scipy.sparse import csr_array

from thresher.analyze.battery.robust import describe_kind
from thresher.analyze.cautions import Caution
from thresher.analyze.compare.codes import Codes, list_sharedness, no_coverage, rank_universality
from thresher.analyze.compare.open import Entry, is_same_panel
from thresher.analyze.metrics.stability import (
    Matching,
    correlate_matched,
    draw_null,
    match_dictionaries,
    match_signed_dictionaries,
    measure_mmcs,
)
from thresher.analyze.metrics.universality import count_matches
from thresher.analyze.survey.sample import to_numpy
from thresher.errors import CheckpointError
from thresher.runs import canonical_json, fingerprint_file
from thresher.train.checkpoint import MODEL, TrainedSAE, load_sae

MOST_ATOMS = 4096
"""Atoms that are matched one to one, those of most energy."""


class Opened(NamedTuple):
    """The checkpoints behind the entries that can still be read, and why others cannot."""

    saes: Mapping[str, TrainedSAE]
    cautions: list[Caution]


def open_checkpoints(entries: Sequence[Entry]) -> Opened:
    """Load the dictionaries from where the analyses found them; one that is gone or has changed is left out with a caution."""
    saes: dict[str, TrainedSAE] = {}
    cautions: list[Caution] = []
    for entry in entries:
        folder = Path(entry.described["path"])
        try:
            if fingerprint_file(folder / MODEL) != entry.described["digest"]:
                raise CheckpointError(f"{folder}: has changed since the analysis")
            saes[entry.label] = load_sae(folder)
        except (CheckpointError, OSError) as error:
            text = f"its dictionary cannot be compared with others: {error}"
            cautions.append(Caution("no-checkpoint", entry.label, text, {}))
    return Opened(saes, cautions)


def name_kinds(entries: Sequence[Entry], saes: Mapping[str, TrainedSAE]) -> dict[str, str]:
    """What is the same for all seeds of one training, per dictionary that could be opened; paths do not count."""
    found: dict[str, str] = {}
    for entry in entries:
        if entry.label in saes:
            trained = saes[entry.label]
            kind = {key: value for key, value in describe_kind(trained).items() if key != "store"}
            found[entry.label] = canonical_json(kind | {"fingerprint": trained.store_fingerprint}).decode()
    return found


class Compared(NamedTuple):
    """What is found about every two dictionaries."""

    pairs: list[dict[str, Any]]
    """Lines of dictionaries.csv."""
    features: list[dict[str, Any]]
    """Lines of sharedness.csv."""
    cautions: list[Caution]


def compare_dictionaries(
    entries: Sequence[Entry], saes: Mapping[str, TrainedSAE], kinds: Mapping[str, str], seed: int
) -> Compared:
    """One dict per two dictionaries of equal width, with what their codes say where both looked at the same held-out rows.

    `kinds`: dictionary -> what is the same for all its seeds.
    """
    rows: list[dict[str, Any]] = []
    known = [entry for entry in entries if entry.label in saes]
    codes = Codes(saes)
    for first, second in itertools.combinations(known, 2):
        if saes[first.label].d_in != saes[second.label].d_in:
            continue
        matched = _match(first, second, saes)
        row = _describe_pair(first, second) | _describe_match(matched, saes, seed)
        both = is_same_panel(first.run, second.run)
        for side in ("image", "text"):
            row |= codes.cover(first, second, side, seed) if both else no_coverage(side)
            row[f"matched_correlation_{side}"] = _correlate(codes, matched, side) if both and matched is not None else None
        rows.append(row | {"universality": rank_universality(codes, first, second)})
    return Compared(rows, list_sharedness(codes, known, kinds), codes.cautions)


def _describe_pair(first: Entry, second: Entry) -> dict[str, Any]:
    stores = [entry.run.tables.metrics["store"]["fingerprint"] for entry in (first, second)]
    return {"first": first.label, "second": second.label, "is_same_store": stores[0] == stores[1]}


class _Matched(NamedTuple):
    """Alive atoms of two dictionaries, matched one to one; the smaller one first."""

    smaller: Entry
    larger: Entry
    features: tuple[Int[np.ndarray, " feature"], Int[np.ndarray, " other"]]
    matching: Matching
    is_signed: bool


def _match(first: Entry, second: Entry, saes: Mapping[str, TrainedSAE]) -> _Matched | None:
    """At most 4096 alive features of each, those of most energy."""
    chosen = [(_choose_alive(entry, saes[entry.label]), entry) for entry in (first, second)]
    (small, smaller), (large, larger) = sorted(chosen, key=lambda one: len(one[0]))
    if len(small) == 0:
        return None
    signed = any(_is_signed(entry) for entry in (first, second))
    match = match_signed_dictionaries if signed else match_dictionaries
    matching = match(_read_atoms(saes, smaller)[small], _read_atoms(saes, larger)[large])
    return _Matched(smaller, larger, (small, large), matching, signed)


def _describe_match(matched: _Matched | None, saes: Mapping[str, TrainedSAE], seed: int) -> dict[str, Any]:
    names = ("stability", "stability_null", "mmcs", "overlap", "overlap_by_chance")
    if matched is None:
        return {"n_atoms": 0} | dict.fromkeys(names)
    atoms = [_read_atoms(saes, entry)[features] for entry, features in zip(matched[:2], matched.features, strict=True)]
    n, width = atoms[0].shape
    null = draw_null(n, width, 1, seed, n_other=len(atoms[1]), signed=matched.is_signed)
    overlap = count_matches(atoms[0], atoms[1], seed) if n > 1 else (None, None)
    values = (matched.matching.stability, null.mean, measure_mmcs(atoms[0], atoms[1]), *overlap)
    return {"n_atoms": n} | dict(zip(names, values, strict=True))


def _correlate(codes: Codes, matched: _Matched, side: str) -> float | None:
    """Mean correlation of the codes of matched features, of those that vary on both."""
    smaller, larger = codes.read(matched.smaller, side), codes.read(matched.larger, side)
    if smaller is None or larger is None:
        return None
    columns = csr_array(smaller[:, matched.features[0]]), csr_array(larger[:, matched.features[1]])
    found = correlate_matched(*columns, matched.matching)
    return float(np.nanmean(found)) if np.isfinite(found).any() else None


def _read_atoms(saes: Mapping[str, TrainedSAE], entry: Entry) -> np.ndarray:
    return to_numpy(saes[entry.label].sae.dictionary)


def _choose_alive(entry: Entry, trained: TrainedSAE) -> Int[np.ndarray, " feature"]:
    features = entry.run.tables.saes[entry.sae].features
    if features is None:
        return np.arange(min(trained.sae.d_sae, MOST_ATOMS))
    energy = np.sum([features[name] for name in ("energy_image", "energy_text", "energy") if name in features], axis=0)
    order = np.argsort(-energy, kind="stable").astype(np.int64)
    return order[energy[order] > 0][:MOST_ATOMS]


def _is_signed(entry: Entry) -> bool:
    features = entry.run.tables.saes[entry.sae].features
    return features is not None and bool(features["n_negative"].any())
