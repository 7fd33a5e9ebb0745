"""Why an image and a caption are alike: the products of their codes, feature by feature."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from thresher.analyze.derived import average_rows
from thresher.analyze.site.items import Book

N_TERMS = 40
"""Terms of a pair that are listed."""
MOST_CAPTIONS = 5


def explain_pairs(
    codes: tuple[csr_array, csr_array],
    atoms: Float[np.ndarray, "feature d_in"],
    pairs: Int[np.ndarray, "pair 2"],
    books: tuple[Book, Book],
    n_images: int,
    seed: int,
) -> dict[str, Any]:
    """Some images with their captions, drawn at random, and what makes each pair alike.

    Of the reconstructions without the bias, <x, y> = sum_ij z_i z'_j cos_ij, exactly. Each pair lists its largest terms
    [i, j, z_i, z'_j, cos_ij, term] and the whole sum; `chance` is the mean of <x, y> over all images and texts, matched or not.
    """
    images = np.unique(pairs[:, 0])
    chosen = np.sort(np.random.default_rng(seed).choice(images, min(n_images, len(images)), replace=False))
    shown: list[dict[str, Any]] = []
    for image in chosen.tolist():
        texts = np.unique(pairs[pairs[:, 0] == image, 1])[:MOST_CAPTIONS]
        explained = [_explain(codes[0], codes[1], image, text, atoms) for text in texts.tolist()]
        numbers = books[1].number(texts)
        captions = [{"text": number} | one for number, one in zip(numbers, explained, strict=True)]
        shown.append({"image": books[0].number(np.array([image]))[0], "captions": captions})
    means = [average_rows(one) @ atoms for one in codes]
    return {"images": shown, "chance": float(means[0] @ means[1])}


def _explain(image: csr_array, text: csr_array, i: int, j: int, atoms: np.ndarray) -> dict[str, Any]:
    (features, values), (others, weights) = _entries(image, i), _entries(text, j)
    cosines = atoms[features] @ atoms[others].T
    terms = values[:, None] * weights[None] * cosines
    order = np.argsort(-np.abs(terms), axis=None, kind="stable")[:N_TERMS]
    rows, columns = np.unravel_index(order, terms.shape)
    listed = [
        [int(features[a]), int(others[b]), values[a], weights[b], cosines[a, b], terms[a, b]]
        for a, b in zip(rows.tolist(), columns.tolist(), strict=True)
    ]
    x, y = values @ atoms[features], weights @ atoms[others]
    norms = [float(np.linalg.norm(x)), float(np.linalg.norm(y))]
    return {"terms": listed, "n_terms": int(terms.size), "total": float(x @ y), "norms": norms}


def _entries(codes: csr_array, row: int) -> tuple[np.ndarray, np.ndarray]:
    start, stop = codes.indptr[row], codes.indptr[row + 1]
    return np.asarray(codes.indices[start:stop]), np.asarray(codes.data[start:stop], dtype=np.float64)
