"""How long the parts of an analysis take, on codes as sparse as real ones.

Usage: python benchmarks/analyze.py [records] [d_sae] [k]
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np
import torch
from scipy.sparse import csr_array

from thresher.analyze.figures import draw_modality, save_chart
from thresher.analyze.metrics.activity import ActivitySums, sum_activity
from thresher.analyze.metrics.codes import to_matrix
from thresher.analyze.metrics.modality import classify, histogram, score_modality
from thresher.analyze.metrics.reconstruction import sum_reconstruction
from thresher.analyze.metrics.resample import Resample
from thresher.analyze.truth import Evidence, Rule, score_truth
from thresher.data.records import Concept
from thresher.train.codes import Codes

T = TypeVar("T")
REPLICATES, D_IN, CONCEPTS = 200, 64, 72


def main() -> None:
    """Print one line per part: seconds, and rows per second where there are rows."""
    n, d_sae, k = (int(value) for value in (sys.argv[1:] + ["4000", "1024", "16"][len(sys.argv) - 1 :]))
    generator = torch.Generator().manual_seed(0)
    popularity = torch.arange(1, d_sae + 1).float() ** -0.5
    codes = Codes(torch.multinomial(popularity.expand(n, -1), k, generator=generator), torch.rand(n, k, generator=generator))
    x = torch.randn(n, D_IN, generator=generator)
    resample, record = Resample(REPLICATES, 0), np.arange(n)
    weights = timed("weights of the records", n, lambda: resample.weights(0, n))
    matrix = timed("codes as a matrix", n, lambda: to_matrix(codes, d_sae))
    timed("reconstruction sums", n, lambda: sum_reconstruction(x, x, np.full(n, k), record, weights))
    sums: ActivitySums = timed("activity sums", n, lambda: sum_activity(matrix, record, weights))
    scores = timed("modality scores", 0, lambda: score_modality(sums, sums, resample.pseudo_counts(d_sae)))
    present = np.random.default_rng(0).random((n, CONCEPTS)) < 0.1
    evidence = Evidence(mark(matrix, present), present, weights)
    concepts = [Concept(str(index), None, "shared") for index in range(CONCEPTS)]
    classes = classify(scores.energy, scores.energy_interval, 0.1, 0.9)
    timed("ground truth", n, lambda: score_truth(evidence, evidence, concepts, classes, Rule(0.3, 0.05, 20), (1, 2, 3)))
    every = np.ones(d_sae, dtype=bool)
    bars = {kind: histogram(scores.energy, np.ones(d_sae), every, 20) for kind in ("features", "energy", "frequent")}
    with TemporaryDirectory() as folder:
        chart = draw_modality({str(index): bars for index in range(4)})
        timed("one figure, three formats", 0, lambda: save_chart(chart, Path(folder), "modality"))


def mark(matrix: csr_array, present: np.ndarray) -> csr_array:
    """Which features fire, with a third of them made to follow a concept, so that there is something to match."""
    fired = matrix.toarray() > 0
    followers = np.arange(0, fired.shape[1], 3)
    fired[:, followers] = present[:, followers % present.shape[1]]
    return csr_array(fired.astype(np.float64))


def timed(name: str, rows: int, work: Callable[[], T]) -> T:
    """The result of `work`, its time printed."""
    start = time.perf_counter()
    found = work()
    seconds = time.perf_counter() - start
    print(f"{name:28} {seconds:8.3f} s" + (f" {rows / seconds:14,.0f} rows/s" if rows else ""))
    return found


if __name__ == "__main__":
    main()
