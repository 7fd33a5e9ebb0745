"""A yardstick for recall: can a linear probe read the concept from the activations at all?"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array

from thresher.analyze.evidence import Present
from thresher.analyze.metrics.association import count_together, phi
from thresher.analyze.metrics.grouping import sum_rows
from thresher.analyze.panels import Panel, split_rows
from thresher.data.records import Concept
from thresher.data.store import Store

MOST_ITEMS = 4000
"""Items a probe is fitted and judged on."""
RIDGE = 1e-3
"""Penalty, relative to the mean variance of a dimension."""


def probe_concepts(
    store: Store, panels: Mapping[str, Panel], presence: Mapping[str, Present], chunk_rows: int
) -> Float[np.ndarray, "2 concept"]:
    """Phi of a linear probe for each concept on images and on texts, judged on items it was not fitted to.

    Token hook points are averaged over the item first. A probe is no strict ceiling: a feature may be less linear.
    """
    found = [_probe_panel(store, panels[name], presence[name], chunk_rows) for name in ("image", "text")]
    return np.stack(found)


def count_decodable(
    probed: Float[np.ndarray, "2 concept"], concepts: Sequence[Concept], scorable: Bool[np.ndarray, " concept"], least: float
) -> dict[str, tuple[int, int]]:
    """Per visibility: how many scorable concepts a probe reads with phi >= `least` in every modality that shows them, of
    how many."""
    both = combine(probed, concepts)
    visibility = np.array([concept.visibility for concept in concepts])
    kinds = {name: scorable & (visibility == name) for name in ("shared", "image", "text")}
    return {name: (int((both[members] >= least).sum()), int(members.sum())) for name, members in kinds.items()}


def combine(values: Float[np.ndarray, "2 *any concept"], concepts: Sequence[Concept]) -> Float[np.ndarray, "*any concept"]:
    """The value in the modality that shows the concept; the smaller of the two for shared ones."""
    visibility = np.array([concept.visibility for concept in concepts])
    return np.where(visibility == "image", values[0], np.where(visibility == "text", values[1], values.min(axis=0)))


def fit_probes(x: Float[np.ndarray, "item d_in"], present: Bool[np.ndarray, "item concept"]) -> Float[np.ndarray, " concept"]:
    """Mean phi over the two halves, each judged by ridge regressions fitted to the other.

    A concept is called present as often as it is in the half that was fitted.
    """
    halves = np.arange(len(x)) % 2 == 0
    return (_fit_half(x, present, halves) + _fit_half(x, present, ~halves)) / 2


def _fit_half(
    x: Float[np.ndarray, "item d_in"], present: Bool[np.ndarray, "item concept"], fitted: Bool[np.ndarray, " item"]
) -> Float[np.ndarray, " concept"]:
    mean, share = x[fitted].mean(axis=0), present[fitted].mean(axis=0)
    rows = x - mean
    gram = rows[fitted].T @ rows[fitted]
    penalty = RIDGE * max(float(np.trace(gram)) / len(gram), np.finfo(np.float64).tiny)
    weights = np.linalg.solve(gram + penalty * np.eye(len(gram)), rows[fitted].T @ (present[fitted] - share))
    scores = rows @ weights
    thresholds = np.array([np.quantile(scores[fitted, c], 1 - share[c]) for c in range(present.shape[1])])
    called = scores[~fitted] > thresholds
    judged = [_phi_of(called[:, c], present[~fitted, c]) for c in range(present.shape[1])]
    return np.array(judged)


def _phi_of(called: Bool[np.ndarray, " item"], present: Bool[np.ndarray, " item"]) -> float:
    counts = count_together(csr_array(called[:, None].astype(np.float64)), present[:, None], np.ones((1, len(called))))
    return float(phi(counts)[0, 0, 0])


def _probe_panel(store: Store, panel: Panel, present: Present, chunk_rows: int) -> Float[np.ndarray, " concept"]:
    wanted = present.kept if len(present.kept) <= MOST_ITEMS else _spread(present.kept)
    position = np.searchsorted(present.kept, wanted)
    return fit_probes(_mean_rows(store, panel, wanted, chunk_rows), present.concepts[position])


def _spread(kept: Int[np.ndarray, " item"]) -> Int[np.ndarray, " item"]:
    return kept[np.linspace(0, len(kept) - 1, MOST_ITEMS).astype(np.int64)]


def _mean_rows(store: Store, panel: Panel, wanted: Int[np.ndarray, " item"], chunk_rows: int) -> Float[np.ndarray, "item d_in"]:
    """The mean activation of each wanted item."""
    place = np.full(len(panel.items), -1)
    place[wanted] = np.arange(len(wanted))
    total = np.zeros((len(wanted), store.hook_points[panel.hook_point].width))
    for part in split_rows(panel, chunk_rows):
        rows, of_row = panel.rows[part], place[panel.item[part]]
        keep = of_row >= 0
        if keep.any():
            found, group = np.unique(of_row[keep], return_inverse=True)
            x = store.read_rows(panel.hook_point, rows[keep]).double().numpy()
            total[found] += sum_rows(x, group.astype(np.int64), len(found))
    return total / np.bincount(panel.item, minlength=len(panel.items))[wanted, None]
