"""Which images a caption finds by its codes alone, and by which features."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from thresher.analyze.metrics.search import score_dot
from thresher.analyze.site.items import Book
from thresher.analyze.statistics.rows import iterate_rows, shape_of

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
    scores = score_dot(queries, csr_array(image[owners[drawn]])).toarray().diagonal()
    ranking = _rank(queries, image, scores)
    shown: list[dict[str, Any]] = []
    for row, own in enumerate(owners[drawn].tolist()):
        best, best_scores = ranking.items[row], ranking.scores[row]
        best, best_scores = best[best_scores > 0], best_scores[best_scores > 0]
        asked = queries[[row], :].toarray().ravel()
        found = [
            {"image": number, "score": score, "matches": _match(image, item, asked), "own": item == own}
            for number, item, score in zip(books[0].number(best), best.tolist(), best_scores.tolist(), strict=True)
        ]
        rank = int(ranking.rank[row]) if scores[row] > 0 else None
        shown.append({"text": books[1].number(captions[[row]])[0], "found": found, "rank": rank})
    return {"captions": shown, "n_images": shape_of(image)[0] if len(drawn) else 0}


class _Ranking(NamedTuple):
    """Per caption the images of the largest scores, those scores, and how many score as much as its own image."""

    items: Int[np.ndarray, "caption found"]
    scores: Float[np.ndarray, "caption found"]
    rank: Int[np.ndarray, " caption"]


def _rank(queries: csr_array, images: csr_array, own: Float[np.ndarray, " caption"]) -> _Ranking:
    """Scores of all images, block by block; ties go to the first image."""
    n = shape_of(queries)[0]
    items, scores, rank = np.zeros((n, 0), np.int64), np.zeros((n, 0)), np.zeros(n, np.int64)
    for rows in iterate_rows(images):
        part = score_dot(queries, csr_array(images[rows])).toarray()
        rank += (part >= own[:, None]).sum(axis=1)
        every = np.concatenate([scores, part], axis=1)
        place = np.concatenate([items, np.broadcast_to(np.arange(rows.start, rows.stop), part.shape)], axis=1)
        order = np.argsort(-every, axis=1, kind="stable")[:, :N_FOUND]
        items, scores = np.take_along_axis(place, order, axis=1), np.take_along_axis(every, order, axis=1)
    return _Ranking(items, scores, rank)


def _match(image: csr_array, item: int, asked: np.ndarray) -> list[list[Any]]:
    start, stop = image.indptr[item], image.indptr[item + 1]
    features, values = image.indices[start:stop], np.asarray(image.data[start:stop], dtype=np.float64)
    terms = values * asked[features]
    order = np.argsort(-np.abs(terms), kind="stable")[:N_MATCHES]
    return [
        [int(features[k]), float(values[k]), float(asked[features[k]]), float(terms[k])] for k in order.tolist() if terms[k]
    ]
