"""Features over several spaces: cross-reconstruction, overlap with single-space dictionaries, latent scaling.

A space is a model, a layer, or a modality with its own decoder.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.sparse import csr_array

from thresher.analyze.metrics.grouping import count_rows
from thresher.analyze.metrics.needs import divide, need_equal, need_items, normalize_rows


def cross_reconstruct(
    codes: Sequence[csr_array],
    dictionaries: Sequence[Float[np.ndarray, "d_sae _"]],
    biases: Sequence[Float[np.ndarray, " _"]],
    targets: Sequence[Float[np.ndarray, "row _"]],
) -> Float[np.ndarray, "source target"]:
    """R2 of decoding space j from codes made of space i, for all i and j (USAE, arXiv 2502.03714, section 4.2).

    Row n of all targets is the same item (or pair). R2 is around the mean vector of the target. Negative where the code of i
    says worse than nothing about j. NaN for a target without variance. Raises AnalysisError: fewer than 2 spaces.
    """
    need_items("cross-reconstruction", len(targets), 2, "spaces")
    found = np.empty((len(codes), len(targets)))
    for j, (dictionary, bias, x) in enumerate(zip(dictionaries, biases, targets, strict=True)):
        total = np.square(x - x.mean(axis=0)).sum()
        for i, z in enumerate(codes):
            need_equal("cross-reconstruction", "rows of codes and targets", count_rows(z), len(x))
            found[i, j] = 1 - float(divide(np.square(x - bias - z @ dictionary).sum(), total))
    return found


def count_matches(
    universal: Float[np.ndarray, "d_sae d_in"], single: Float[np.ndarray, "d_single width"], seed: int, least: float = 0.5
) -> tuple[float, float]:
    """Share of atoms of `universal` that have an atom of `single` with cosine above `least`, and the same for as many random
    atoms, drawn from a normal with the mean and covariance of `universal`'s (arXiv 2502.03714, section 4.4).
    """
    need_equal("overlap of dictionaries", "widths", universal.shape[1], single.shape[1])
    need_items("overlap of dictionaries", len(universal), 2, "atoms")
    generator = np.random.default_rng(seed)
    centred = universal - universal.mean(axis=0)
    # Random mixtures of the centred atoms have their covariance, without factoring it.
    mixture = generator.normal(size=(len(universal), len(universal))) / np.sqrt(len(universal))
    random = universal.mean(axis=0) + mixture @ centred
    target = normalize_rows(single).T
    shares = [float(((normalize_rows(atoms) @ target).max(axis=1) > least).mean()) for atoms in (universal, random)]
    return shares[0], shares[1]


def scale_latents(
    codes: csr_array, dictionary: Float[np.ndarray, "d_sae d_in"], y: Float[np.ndarray, "row width"]
) -> Float[np.ndarray, " d_sae"]:
    """beta_i = sum_n f_i <d_i, y_n> / sum_n f_i^2 ||d_i||^2, the least-squares factor by which feature i explains y
    (latent scaling, arXiv 2504.02922). NaN for features that never fire.

    With y the residual of space A or B plus the feature's own part, beta_A / beta_B near 0 says that a feature is exclusive
    to B. Raises AnalysisError: other rows or widths.
    """
    need_equal("latent scaling", "rows of codes and activations", count_rows(codes), len(y))
    need_equal("latent scaling", "widths of dictionary and activations", dictionary.shape[1], y.shape[1])
    weighted = codes.T.tocsr() @ y
    square = np.asarray(codes.power(2).sum(axis=0), dtype=np.float64) * np.square(dictionary).sum(axis=1)
    return divide((weighted * dictionary).sum(axis=1), square)
