"""Which images a caption finds by its codes alone, and by which features."""

from typing import Any

import numpy as np
from jaxtyping import Int
from scipy.sparse import csr_array

from thresher.analyze.metrics.search import score_dot
from thresher.analyze.site.items import Book

N_FOUND = 12
"""Images that are shown per caption."""
N_MATCHES = 5
"""Features that are listed per image."""


def find_images(
    codes: tuple[csr_array, csr_array], pairs: Int[np.ndarray, "pair 2"], books: tuple[Book, Book], n_captions: int, seed: int
) -> dict[str, Any]:
    """Some captions, one of each of some images drawn at random, and the images of the largest sum_i z_i z'_i over features i.

    Codes for atoms of unit norm, the z of the image, z' of the caption. Each image lists its largest terms
    [feature, z, z', term]; `rank` is that of the caption's own image among all (1 = first, equal scores before it). Images
    whose score is not above 0 are not found; their rank is None.
    """
    image, text = codes
    owners, first = np.unique(pairs[:, 0], return_index=True)
    drawn = np.sort(np.random.default_rng(seed).choice(len(owners), min(n_captions, len(owners)), replace=False))
    captions = pairs[first[drawn], 1]
    queries = csr_array(text[captions])
    scores = score_dot(queries, image).toarray()
    shown: list[dict[str, Any]] = []
    for row, own in enumerate(owners[drawn].tolist()):
        order = np.argsort(-scores[row], kind="stable")[:N_FOUND]
        best = order[scores[row, order] > 0]
        asked = queries[[row], :].toarray().ravel()
        found = [
            {"image": number, "score": scores[row, item], "matches": _match(image, item, asked), "own": item == own}
            for number, item in zip(books[0].number(best), best.tolist(), strict=True)
        ]
        rank = int((scores[row] >= scores[row, own]).sum()) if scores[row, own] > 0 else None
        shown.append({"text": books[1].number(captions[[row]])[0], "found": found, "rank": rank})
    return {"captions": shown, "n_images": len(scores[0]) if len(scores) else 0}


def _match(image: csr_array, item: int, asked: np.ndarray) -> list[list[Any]]:
    start, stop = image.indptr[item], image.indptr[item + 1]
    features, values = image.indices[start:stop], np.asarray(image.data[start:stop], dtype=np.float64)
    terms = values * asked[features]
    order = np.argsort(-np.abs(terms), kind="stable")[:N_MATCHES]
    return [
        [int(features[k]), float(values[k]), float(asked[features[k]]), float(terms[k])] for k in order.tolist() if terms[k]
    ]
