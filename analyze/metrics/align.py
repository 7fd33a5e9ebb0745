"""Maps from images to texts that need no one-to-one partners, judged on pairs they were not fitted to."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from thresher.analyze.metrics.needs import need_equal, need_items, normalize_rows
from thresher.analyze.metrics.search import rank_documents


class Alignment(NamedTuple):
    """Retrieval of the own text among all held-out ones, by cosine."""

    recall: Float[np.ndarray, " cutoff"]
    mrr: float


class AffineMaps(NamedTuple):
    """A linear map of each side after its mean is taken off."""

    image_mean: Float[np.ndarray, " image_width"]
    text_mean: Float[np.ndarray, " text_width"]
    image: Float[np.ndarray, "image_width common"]
    text: Float[np.ndarray, "text_width common"]


def fit_procrustes(image: Float[np.ndarray, "pair width"], text: Float[np.ndarray, "pair width"]) -> AffineMaps:
    """The rotation of the images onto the texts: argmin_R ||X R - Y|| over orthogonal R, R = U V' of X'Y = U S V'. Measure D12.

    Schoenemann 1966. Rows are activations, reconstructions or dense codes of the same width; each side is centred.
    """
    need_equal("Procrustes", "pairs", len(image), len(text))
    means = image.mean(0), text.mean(0)
    left, _, right = np.linalg.svd((image - means[0]).T @ (text - means[1]))
    return AffineMaps(*means, left @ right, np.eye(text.shape[1]))


def fit_cca(
    image: Float[np.ndarray, "pair image_width"], text: Float[np.ndarray, "pair text_width"], n_directions: int, ridge: float
) -> AffineMaps:
    """Canonical correlation analysis: the `n_directions` pairs of directions that correlate most over pairs. Measure D12.

    Hotelling 1936, with `ridge` times the mean variance added to each variance: without it any few pairs correlate fully.
    """
    need_equal("CCA", "pairs", len(image), len(text))
    need_items("CCA", min(image.shape[1], text.shape[1]), n_directions, "directions")
    means, whiten = (image.mean(0), text.mean(0)), []
    for side, mean in zip((image, text), means, strict=True):
        covariance = (side - mean).T @ (side - mean) / len(side)
        covariance += (ridge * np.trace(covariance) / len(covariance) + 1e-12) * np.eye(len(covariance))
        values, vectors = np.linalg.eigh(covariance)
        whiten.append(vectors / np.sqrt(values))
    cross = whiten[0].T @ (image - means[0]).T @ (text - means[1]) @ whiten[1] / len(image)
    left, _, right = np.linalg.svd(cross)
    return AffineMaps(*means, whiten[0] @ left[:, :n_directions], whiten[1] @ right[:n_directions].T)


def fit_sinkhorn(
    rho: Float[np.ndarray, "image_feature text_feature"], temperature: float, n_rounds: int = 200
) -> Float[np.ndarray, "image_feature text_feature"]:
    """A soft matching of features: the plan of largest sum rho_ij P_ij + temperature * entropy.

    All rows have the same mass, all columns too (Cuturi 2013, arXiv 1306.0895). As the temperature falls it
    becomes the one-to-one matching. Multiply image codes by it to bring them to text features. Rows sum to 1. Measure D12.
    """
    # Relative to the best of a row, and above 0, so that no sum is 0 at low temperatures.
    kernel = np.maximum(np.exp((rho - rho.max(axis=1, keepdims=True)) / temperature), 1e-200)
    columns = np.ones(rho.shape[1])
    for _ in range(n_rounds):
        rows = 1 / (kernel @ columns)
        columns = rho.shape[0] / rho.shape[1] / (rows @ kernel)
    plan = kernel * columns
    return plan / plan.sum(axis=1, keepdims=True)


def judge_maps(
    maps: AffineMaps,
    image: Float[np.ndarray, "pair image_width"],
    text: Float[np.ndarray, "pair text_width"],
    cutoffs: list[int],
) -> Alignment:
    """Retrieval on pairs that the maps were not fitted to, image to text."""
    return judge_rows((image - maps.image_mean) @ maps.image, (text - maps.text_mean) @ maps.text, cutoffs)


def judge_rows(
    image: Float[np.ndarray, "pair common"], text: Float[np.ndarray, "pair common"], cutoffs: list[int]
) -> Alignment:
    """Recall of each row's own text by cosine; ties are ranked pessimistically, rows of zeros find nothing."""
    ranked = rank_documents(normalize_rows(image) @ normalize_rows(text).T, np.eye(len(image), dtype=bool), cutoffs)
    return Alignment(ranked.recall, ranked.mrr)
