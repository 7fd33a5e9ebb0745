"""The codes of dictionaries on the rows that both held out: what one has of the features of the other."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import csr_array
from scipy.stats import rankdata

from thresher.analyze.cautions import Caution
from thresher.analyze.compare.open import Entry
from thresher.analyze.metrics.codes import to_matrix
from thresher.analyze.metrics.matching import comparative_sharedness
from thresher.analyze.panels import Panel, open_panels, split_rows
from thresher.analyze.statistics.coverage import cover
from thresher.data.store import Store, open_store
from thresher.errors import StoreError
from thresher.train.checkpoint import TrainedSAE

MOST_RECORDS = 2000
"""Held-out records whose codes are compared."""
CHUNK = 4096
LEAST_FEATURES = 10
"""Features that a rank correlation needs."""


def no_coverage(side: str) -> dict[str, Any]:
    """The columns of `Codes.cover` where it does not apply."""
    names = ("coverage", "coverage_by_chance", "coverage_back", "coverage_back_by_chance")
    return {f"{name}_{side}": None for name in names}


def list_sharedness(codes: "Codes", entries: Sequence[Entry], kinds: Mapping[str, str]) -> list[dict[str, Any]]:
    """Per feature and side how much better seeds of the same training have it than other trainings (arXiv 2507.18512).

    `like`: least of its best correlations with a feature of each other seed; `unlike`: the largest with one of any other
    kind; `comparative`: like^2 - unlike^2. Only of dictionaries that have both.
    """
    rows: list[dict[str, Any]] = []
    for entry in entries:
        for side in ("image", "text"):
            known = {other: rho for (own, other, of), rho in codes.best.items() if (own, of) == (entry.label, side)}
            groups = [
                [rho for other, rho in known.items() if is_like(kinds, entry.label, other) == wants] for wants in (True, False)
            ]
            if not groups[0] or not groups[1]:
                continue
            like, unlike = np.stack(groups[0]), np.stack(groups[1])
            found = comparative_sharedness(np.ones(like.shape[1]), like, unlike)
            rows += [
                {"dictionary": entry.label, "modality": side, "feature": i, "like": a, "unlike": b, "comparative": c}
                for i, (a, b, c) in enumerate(zip(like.min(axis=0), unlike.max(axis=0), found, strict=True))
            ]
    return rows


def is_like(kinds: Mapping[str, str], first: str, second: str) -> bool:
    """Whether two dictionaries differ by seed alone."""
    return kinds[first] == kinds[second]


def rank_universality(codes: "Codes", first: Entry, second: Entry) -> float | None:
    """Rank correlation over features of the first: is what the second has too (mean over sides of the best correlation) what
    images and texts share (`rho` of features.parquet)? None where codes or pairs do not allow it.
    """
    features = first.run.tables.saes[first.sae].features
    best = [codes.best.get((first.label, second.label, side)) for side in ("image", "text")]
    if features is None or "rho" not in features or best[0] is None or best[1] is None:
        return None
    rho = np.asarray(features["rho"], dtype=np.float64)
    known = np.isfinite(rho) & (best[0] + best[1] > 0)
    if known.sum() < LEAST_FEATURES:
        return None
    ranks = rankdata(rho[known]), rankdata((best[0] + best[1])[known])
    return float(np.corrcoef(*ranks)[0, 1]) if min(np.ptp(one) for one in ranks) > 0 else None


class Codes:
    """Codes of the held-out rows, encoded once per dictionary and modality."""

    def __init__(self, saes: Mapping[str, TrainedSAE]) -> None:
        self.saes = saes
        self.cautions: list[Caution] = []
        self._stores: dict[str, Store | None] = {}
        self._panels: dict[str, dict[str, Panel]] = {}
        self._codes: dict[tuple[str, str], csr_array] = {}
        self.best: dict[tuple[str, str, str], Float[np.ndarray, " feature"]] = {}
        """(dictionary, other, side) -> largest correlation of each feature with one of the other; 0 where there is none."""

    def cover(self, first: Entry, second: Entry, side: str, seed: int) -> dict[str, Any]:
        """wMPPC of the first's features by the second's and back, with what shuffled rows give."""
        mine, theirs = self.read(first, side), self.read(second, side)
        if mine is None or theirs is None:
            return no_coverage(side)
        there, back = cover(mine, theirs, seed), cover(theirs, mine, seed)
        self.best[first.label, second.label, side] = np.nan_to_num(there.rho)
        self.best[second.label, first.label, side] = np.nan_to_num(back.rho)
        return {
            f"coverage_{side}": there.value,
            f"coverage_by_chance_{side}": there.by_chance,
            f"coverage_back_{side}": back.value,
            f"coverage_back_by_chance_{side}": back.by_chance,
        }

    def read(self, entry: Entry, side: str) -> csr_array | None:
        """Codes of the held-out rows; None where the store is gone or the analysis has no such modality."""
        store = self._open(entry)
        if store is None or side not in entry.run.tables.metrics["held_out"]["panels"]:
            return None
        return self._encode(store, entry, side)

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
