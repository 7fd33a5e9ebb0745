"""Every two dictionaries: the same atoms, the same features?"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array

from thresher.analyze.battery.robust import describe_kind
from thresher.analyze.cautions import Caution
from thresher.analyze.compare.open import Entry, is_same_panel
from thresher.analyze.metrics.codes import to_matrix
from thresher.analyze.metrics.stability import draw_null, match_dictionaries, match_signed_dictionaries, measure_mmcs
from thresher.analyze.panels import Panel, open_panels, split_rows
from thresher.analyze.statistics.coverage import cover
from thresher.analyze.survey.sample import to_numpy
from thresher.data.store import Store, open_store
from thresher.errors import CheckpointError, StoreError
from thresher.runs import canonical_json, fingerprint_file
from thresher.train.checkpoint import MODEL, TrainedSAE, load_sae

MOST_ATOMS = 4096
"""Atoms that are matched one to one, those of most energy."""
MOST_RECORDS = 2000
"""Held-out records whose codes are compared."""
CHUNK = 4096


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


def compare_dictionaries(
    entries: Sequence[Entry], saes: Mapping[str, TrainedSAE], seed: int
) -> tuple[list[dict[str, Any]], list[Caution]]:
    """One dict per two dictionaries of equal width, with `coverage` where both looked at the same held-out rows."""
    rows: list[dict[str, Any]] = []
    known = [entry for entry in entries if entry.label in saes]
    codes = _Codes(saes)
    for first, second in itertools.combinations(known, 2):
        if saes[first.label].d_in != saes[second.label].d_in:
            continue
        row = _describe_pair(first, second) | _match(first, second, saes, seed)
        both = is_same_panel(first.run, second.run)
        for side in ("image", "text"):
            row |= codes.cover(first, second, side, seed) if both else _no_coverage(side)
        rows.append(row)
    return rows, codes.cautions


def _describe_pair(first: Entry, second: Entry) -> dict[str, Any]:
    stores = [entry.run.tables.metrics["store"]["fingerprint"] for entry in (first, second)]
    return {"first": first.label, "second": second.label, "is_same_store": stores[0] == stores[1]}


def _match(first: Entry, second: Entry, saes: Mapping[str, TrainedSAE], seed: int) -> dict[str, Any]:
    """Alive atoms of the first, at most 4096 of most energy, matched with those of the second."""
    atoms = [_alive_atoms(entry, saes[entry.label]) for entry in (first, second)]
    if min(len(one) for one in atoms) == 0:
        return {"n_atoms": 0, "stability": None, "stability_null": None, "mmcs": None}
    signed = any(_is_signed(entry) for entry in (first, second))
    match = match_signed_dictionaries if signed else match_dictionaries
    smaller, larger = sorted(atoms, key=len)
    null = draw_null(len(smaller), smaller.shape[1], 1, seed, n_other=len(larger), signed=signed)
    return {
        "n_atoms": len(smaller),
        "stability": match(smaller, larger).stability,
        "stability_null": null.mean,
        "mmcs": measure_mmcs(smaller, larger),
    }


def _alive_atoms(entry: Entry, trained: TrainedSAE) -> np.ndarray:
    atoms = to_numpy(trained.sae.dictionary)
    features = entry.run.tables.saes[entry.sae].features
    if features is None:
        return atoms[:MOST_ATOMS]
    energy = features["energy_image"] + features["energy_text"]
    order = np.argsort(-energy, kind="stable")
    return atoms[order[energy[order] > 0][:MOST_ATOMS]]


def _is_signed(entry: Entry) -> bool:
    features = entry.run.tables.saes[entry.sae].features
    return features is not None and bool(features["n_negative"].any())


def _no_coverage(side: str) -> dict[str, Any]:
    names = ("coverage", "coverage_by_chance", "coverage_back", "coverage_back_by_chance")
    return {f"{name}_{side}": None for name in names}


class _Codes:
    """Codes of the held-out rows, encoded once per dictionary and modality."""

    def __init__(self, saes: Mapping[str, TrainedSAE]) -> None:
        self.saes = saes
        self.cautions: list[Caution] = []
        self._stores: dict[str, Store | None] = {}
        self._panels: dict[str, dict[str, Panel]] = {}
        self._codes: dict[tuple[str, str], csr_array] = {}

    def cover(self, first: Entry, second: Entry, side: str, seed: int) -> dict[str, Any]:
        """wMPPC of the first's features by the second's and back, with what shuffled rows give."""
        store = self._open(first)
        if store is None or side not in first.run.tables.metrics["held_out"]["panels"]:
            return _no_coverage(side)
        mine, theirs = self._encode(store, first, side), self._encode(store, second, side)
        there, back = cover(mine, theirs, seed), cover(theirs, mine, seed)
        return {
            f"coverage_{side}": there.value,
            f"coverage_by_chance_{side}": there.by_chance,
            f"coverage_back_{side}": back.value,
            f"coverage_back_by_chance_{side}": back.by_chance,
        }

    def _open(self, entry: Entry) -> Store | None:
        told = entry.run.tables.metrics["store"]
        if told["fingerprint"] not in self._stores:
            self._stores[told["fingerprint"]] = self._try(told["path"], told["fingerprint"])
        return self._stores[told["fingerprint"]]

    def _try(self, path: str, fingerprint: str) -> Store | None:
        try:
            store = open_store(path)
        except StoreError as error:
            self.cautions.append(Caution("no-store", None, f"No coverage: the store cannot be read ({error}).", {}))
            return None
        if store.fingerprint != fingerprint:
            text = f"No coverage: {path} is another store than the analyses were made from."
            self.cautions.append(Caution("no-store", None, text, {}))
            return None
        return store

    @torch.no_grad()
    def _encode(self, store: Store, entry: Entry, side: str) -> csr_array:
        panels = self._find_panels(store, entry)
        if (entry.label, side) not in self._codes:
            trained, panel = self.saes[entry.label], panels[side]
            parts = [
                to_matrix(
                    trained.encode(store.read_rows(panel.hook_point, panel.rows[part]).float(), panel.hook_point),
                    trained.sae.d_sae,
                )
                for part in split_rows(panel, CHUNK)
            ]
            data, indices = (np.concatenate([getattr(part, name) for part in parts]) for name in ("data", "indices"))
            starts = np.concatenate([[0], np.cumsum(np.concatenate([np.diff(part.indptr) for part in parts]))])
            self._codes[entry.label, side] = csr_array((data, indices, starts), shape=(len(panel.rows), trained.sae.d_sae))
        return self._codes[entry.label, side]

    def _find_panels(self, store: Store, entry: Entry) -> dict[str, Panel]:
        told = entry.run.tables.metrics["held_out"]
        key = f"{store.fingerprint} {entry.run.name}"
        if key not in self._panels:
            names = [panel["hook_point"] for panel in told["panels"].values()]
            limit = min(MOST_RECORDS, told["records"])
            self._panels[key] = open_panels(store, names, told["fraction"], told["seed"], limit)
        return self._panels[key]
