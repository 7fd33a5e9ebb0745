"""How long the parts of an analysis take, on codes as sparse as real ones.

Usage: python benchmarks/analyze.py [records] [d_sae] [k] [all | pairs]

`pairs` times only the sums over pairs of an image and a text, at sizes where the rest would not fit: say 1000000 16384 32.
"""

import resource
import sys
import time
from collections.abc import Callable, Iterator
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
from thresher.analyze.statistics.examples import find_examples
from thresher.analyze.statistics.features import sum_features
from thresher.analyze.statistics.gram import GramRows, iterate_gram
from thresher.analyze.statistics.margins import sum_margins
from thresher.analyze.statistics.paired import find_marginals, sum_pairs
from thresher.analyze.statistics.pairing import Pairing, pair_codes
from thresher.analyze.statistics.partners import Bridging, walk_gram
from thresher.analyze.statistics.rows import BLOCK, RowsWriter
from thresher.analyze.truth import Evidence, Rule, score_truth
from thresher.data.records import Concept
from thresher.train.codes import Codes

T = TypeVar("T")
REPLICATES, D_IN, CONCEPTS = 200, 64, 72


def main() -> None:
    """Print one line per part: seconds, CPU seconds, and rows per second where there are rows."""
    n, d_sae, k = (int(value) for value in (sys.argv[1:4] + ["4000", "1024", "16"][len(sys.argv) - 1 :]))
    if sys.argv[4:] != ["pairs"]:
        time_rows(n, d_sae, k)
    with TemporaryDirectory() as folder:
        time_pairs(n, d_sae, k, Path(folder))


def time_rows(n: int, d_sae: int, k: int) -> None:
    """What is summed over rows, and what is drawn."""
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


def time_pairs(n: int, d_sae: int, k: int, folder: Path) -> None:
    """What is summed over pairs, one text per image; codes and what is made of them lie in files."""
    image, text = timed("write codes", n, lambda: draw_pairs(n, d_sae, k, folder))
    pairs = np.tile(np.arange(n)[:, None], 2)
    timed("sums per feature, images", n, lambda: sum_features(image))
    timed("64 examples per feature", n, lambda: find_examples(image, 64))
    pairing = timed("pair", n, lambda: pair_codes(image, text, pairs, np.arange(n), folder / "pairing"))
    sums = timed("sums over pairs", n, lambda: sum_pairs(pairing))
    dictionary = np.random.default_rng(0).normal(size=(d_sae, 8 * D_IN)) / (8 * D_IN) ** 0.5
    timed("sums of the margin", n, lambda: sum_margins(pairing, dictionary))
    rows, columns = np.flatnonzero(sums.image_fires), np.flatnonzero(sums.text_fires)
    work = float(np.diff(image.indptr).astype(float) @ np.diff(text.indptr))
    gram = timed("Gram matrix", n, lambda: sum(part.products.size for part in gram_of(pairing, rows, columns)))
    print(f"{'':28} {gram / 1e6:.0f} M entries, {work / 1e6:.0f} M multiply-adds, twice")
    marginals = find_marginals(sums)
    bridging = Bridging(dictionary, np.zeros((1, d_sae), np.int64), 1)
    walk = timed("Gram matrix, edges, bridges", n, lambda: walk_gram(gram_of(pairing, rows, columns), marginals, 16, bridging))
    print(f"{'':28} {len(walk.edges.i)} edges, peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


def gram_of(pairing: Pairing, rows: np.ndarray, columns: np.ndarray) -> Iterator[GramRows]:
    """The Gram matrix in blocks of 200 MB."""
    return iterate_gram(pairing, rows, columns)


def draw_pairs(n: int, d_sae: int, k: int, folder: Path) -> tuple[csr_array, csr_array]:
    """Codes of images and texts with Zipf popularity (exponent 0.7); a text has half of the features of its image."""
    generator = np.random.default_rng(0)
    cumulative = np.cumsum(np.arange(1, d_sae + 1) ** -0.7)
    writers = [RowsWriter(d_sae, folder / name) for name in ("image", "text")]
    for start in range(0, n, BLOCK):
        size = min(BLOCK, n - start)
        drawn = generator.random((2, size, k)) * cumulative[-1]
        image, text = np.searchsorted(cumulative, drawn).clip(max=d_sae - 1)
        text[:, : k // 2] = image[:, : k // 2]
        for writer, features in zip(writers, (image, text), strict=True):
            codes = (generator.exponential(size=size * k), features.ravel(), np.arange(size + 1) * k)
            matrix = csr_array(codes, shape=(size, d_sae))
            matrix.sum_duplicates()
            writer.append(matrix)
    image, text = (writer.finish() for writer in writers)
    return image, text


def mark(matrix: csr_array, present: np.ndarray) -> csr_array:
    """Which features fire, with a third of them made to follow a concept, so that there is something to match."""
    fired = matrix.toarray() > 0
    followers = np.arange(0, fired.shape[1], 3)
    fired[:, followers] = present[:, followers % present.shape[1]]
    return csr_array(fired.astype(np.float64))


def timed(name: str, rows: int, work: Callable[[], T]) -> T:
    """The result of `work`, its wall and CPU time printed."""
    start, spent = time.perf_counter(), time.process_time()
    found = work()
    seconds, spent = time.perf_counter() - start, time.process_time() - spent
    print(f"{name:28} {seconds:8.3f} s {spent:8.3f} s CPU" + (f" {rows / seconds:14,.0f} rows/s" if rows else ""), flush=True)
    return found


if __name__ == "__main__":
    main()
