"""Do linear maps or soft matchings find the text of an image better than the shared features do? On held-out pairs."""

from typing import Any

import numpy as np
from jaxtyping import Int
from scipy.sparse import csr_array

from thresher.analyze.metrics.align import fit_cca, fit_procrustes, fit_sinkhorn, judge_maps, judge_rows
from thresher.analyze.metrics.pairs import correlate_rows
from thresher.analyze.statistics.crossmodal import Items
from thresher.analyze.statistics.gram import iterate_gram
from thresher.analyze.statistics.paired import find_marginals, sum_pairs
from thresher.analyze.statistics.pairing import pair_codes

FITTED, JUDGED = 20_000, 1000
"""Images that the maps are fitted to and judged on, at most. The recall of a retrieval depends on the second: quote it."""
FEATURES = 1024
"""Features of a soft matching, those that fire most on their side."""
LEAST = 20
"""Images needed on each side of the split."""
DIRECTIONS, RIDGE, TEMPERATURE = 64, 1e-2, 0.05
CUTOFFS = [1, 5, 10]


def judge_alignments(items: Items, seed: int) -> dict[str, Any] | None:
    """Recall at 1, 5 and 10 of an image's own text among held-out ones. Measure D12.

    For reconstructions without the bias (`as_they_are`, `procrustes`, `cca`) and for codes (`codes`, `codes_sinkhorn`). One
    text per image; half of the records are for fitting. None with fewer than 40 images that have a text.
    """
    _, first = np.unique(items.pairs[:, 0], return_index=True)
    pairs = items.pairs[first]
    order = np.random.default_rng(seed).permutation(np.unique(items.record[pairs[:, 0]]))
    is_fitted = np.isin(items.record[pairs[:, 0]], order[: len(order) // 2])
    fitted, judged = pairs[is_fitted][:FITTED], pairs[~is_fitted][:JUDGED]
    if min(len(fitted), len(judged)) < LEAST:
        return None
    x, y = (_decode(side[fitted[:, c]], items) for c, side in enumerate((items.image, items.text)))
    image, text = (_decode(side[judged[:, c]], items) for c, side in enumerate((items.image, items.text)))
    n_directions = min(DIRECTIONS, x.shape[1])
    recalls = {
        "as_they_are": judge_rows(image, text, CUTOFFS),
        "procrustes": judge_maps(fit_procrustes(x, y), image, text, CUTOFFS),
        "cca": judge_maps(fit_cca(x, y, n_directions, RIDGE), image, text, CUTOFFS),
    } | _judge_codes(items, fitted, judged)
    return {"n_fitted": len(fitted), "n_judged": len(judged), "cutoffs": CUTOFFS} | {
        name: {"recall": found.recall.tolist(), "mrr": found.mrr} for name, found in recalls.items()
    }


def _judge_codes(items: Items, fitted: Int[np.ndarray, "fitted 2"], judged: Int[np.ndarray, "judged 2"]) -> dict[str, Any]:
    sides = csr_array(items.image[fitted[:, 0]]), csr_array(items.text[fitted[:, 1]])
    every = np.arange(len(fitted))
    pairing = pair_codes(*sides, np.column_stack([every, every]), every)
    sums = sum_pairs(pairing)
    image, text = (np.sort(np.argsort(-fires, kind="stable")[:FEATURES]) for fires in (sums.image_fires, sums.text_fires))
    blocks = [correlate_rows(rows, find_marginals(sums)) for rows in iterate_gram(pairing, image, text)]
    plan = fit_sinkhorn(np.concatenate(blocks), TEMPERATURE)
    queries, documents = items.image[judged[:, 0]].toarray(), items.text[judged[:, 1]].toarray()
    return {
        "codes": judge_rows(queries, documents, CUTOFFS),
        "codes_sinkhorn": judge_rows(queries[:, image] @ plan, documents[:, text], CUTOFFS),
    }


def _decode(codes: csr_array, items: Items) -> np.ndarray:
    return np.asarray(codes @ items.dictionary)
