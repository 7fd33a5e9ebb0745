"""Names for features out of a vocabulary, without a judge: the nearest words, and whether they are nearer than by chance."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from thresher.analyze.metrics.needs import divide, need_equal, need_items, normalize_rows

FEATURES_AT_ONCE = 1024


class Names(NamedTuple):
    """The nearest words of each feature, best first. A name is a hypothesis: test it on labels."""

    word: Int[np.ndarray, "feature top"]
    """Positions in the vocabulary."""
    cosine: Float[np.ndarray, "feature top"]
    z: Float[np.ndarray, " feature"]
    """(best cosine - mean) / standard deviation over the vocabulary: comparable between image-side and text-side names."""
    margin: Float[np.ndarray, " feature"]
    """Best cosine minus second best."""
    ratio: Float[np.ndarray, " feature"]
    """Best cosine over second best; NaN unless the second is positive."""


def name_features(
    directions: Float[np.ndarray, "feature d_in"],
    vocabulary: Float[np.ndarray, "word width"],
    n_names: int,
    direction_mean: Float[np.ndarray, " d_in"] | None = None,
) -> Names:
    """Cosine of each direction with each word's embedding, both sides freed from their modality's mean.

    `vocabulary` holds embeddings of the studied encoder; they get unit norm, and their mean is taken off: image atoms live on
    the other side of the gap, and an uncentred vocabulary names the cone. `directions` are decoder atoms, which are differences
    already (no `direction_mean`), or activation-weighted mean embeddings of a feature's items (less noisy), whose modality's
    mean goes in `direction_mean`. CLIP-Dissect (arXiv 2204.10965) and MSAE (arXiv 2502.20578) with centring added.
    Costs O(feature * word * d_in), in blocks. NaN and word -1 for a direction of length 0. Raises AnalysisError: fewer than 3
    words or than `n_names`, or a vocabulary of another encoder's width.
    """
    need_items("naming", len(vocabulary), max(3, n_names), "words")
    need_equal("naming", "widths of the dictionary and of the vocabulary", directions.shape[1], vocabulary.shape[1])
    unit = normalize_rows(vocabulary)
    words = normalize_rows(unit - unit.mean(axis=0)).T
    shifted = directions if direction_mean is None else directions - direction_mean
    n_top = max(n_names, 2)
    blocks = [_nearest(shifted[start : start + FEATURES_AT_ONCE], words, n_top) for start in _starts(len(shifted))]
    word, cosine, mean, spread = (np.concatenate(part) for part in zip(*blocks, strict=True))
    is_nothing = np.linalg.norm(shifted, axis=1) == 0
    cosine[is_nothing], word[is_nothing] = np.nan, -1
    second = np.where(cosine[:, 1] > 0, cosine[:, 1], np.nan)
    return Names(
        word=word[:, :n_names],
        cosine=cosine[:, :n_names],
        z=divide(cosine[:, 0] - mean, spread),
        margin=cosine[:, 0] - cosine[:, 1],
        ratio=divide(cosine[:, 0], second),
    )


def compare_names(
    image: Int[np.ndarray, " feature"], text: Int[np.ndarray, " feature"], words: Float[np.ndarray, "word d_ext"]
) -> Float[np.ndarray, " feature"]:
    """Cosine of the image-side and the text-side name in a sentence encoder that has no part in the study; NaN without names.

    `words` are centred here, so that unrelated words score about 0. 1 for equal names.
    """
    need_items("agreement of names", len(words), 3, "words")
    unit = normalize_rows(words)
    centred = normalize_rows(unit - unit.mean(axis=0))
    is_named = (image >= 0) & (text >= 0)
    return np.where(is_named, (centred[image] * centred[text]).sum(axis=1), np.nan)


def _nearest(directions: np.ndarray, words: np.ndarray, n_top: int) -> tuple[np.ndarray, ...]:
    cosine = normalize_rows(directions) @ words
    top = np.argpartition(-cosine, n_top - 1, axis=1)[:, :n_top]
    found = np.take_along_axis(cosine, top, axis=1)
    # Equal words in the order of the vocabulary, whatever the partition did.
    order = np.lexsort((top, -found), axis=1)
    top, found = np.take_along_axis(top, order, axis=1), np.take_along_axis(found, order, axis=1)
    return top.astype(np.int64), found, cosine.mean(axis=1), cosine.std(axis=1)


def _starts(n: int) -> range:
    return range(0, n, FEATURES_AT_ONCE)
