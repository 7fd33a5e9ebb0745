"""Level 3: are the items that a feature fires on about the same thing, on each modality and across them?"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from thresher.analyze.battery.sides import Sides
from thresher.analyze.metrics.needs import divide, need_equal
from thresher.analyze.metrics.semantics import (
    Meaning,
    SemanticSums,
    add_semantics,
    centre,
    measure_consistency,
    measure_monosemanticity,
    measure_multimodal,
    sum_pairs,
    sum_semantics,
)
from thresher.analyze.statistics.rows import iterate_blocks

LEAST = 4
"""Items that a comparison with random items needs."""


class Embeddings(NamedTuple):
    """One image and one caption of each judged record, with vectors that say what they are about."""

    source: str
    """`external`, `words` or `activations`."""
    image_items: Int[np.ndarray, " record"]
    """Positions among the images."""
    text_items: Int[np.ndarray, " record"]
    image: Float[np.ndarray, "record width"]
    """Unit vectors around the mean of the modality, so that neither a cone nor the gap is taken for meaning."""
    text: Float[np.ndarray, "record width"]


class Meanings(NamedTuple):
    """Scores of all features."""

    image: Meaning
    text: Meaning
    across: Meaning
    agreement: Float[np.ndarray, " feature"]
    """MMS / sqrt(MS_image MS_text), of codes as they are: the cosine between what it is about on images and on texts, without
    the bias of few items; NaN where a side is about nothing. Among many items any two topics differ from random ones, so z
    alone says little."""


def make_embeddings(
    source: str,
    image_items: Int[np.ndarray, " record"],
    text_items: Int[np.ndarray, " record"],
    image: Float[np.ndarray, "_ _"],
    text: Float[np.ndarray, "_ _"],
) -> Embeddings | None:
    """Centre the vectors; None when there are fewer than 4 records. Raises AnalysisError when widths or counts differ."""
    need_equal("meaning", "widths of the embeddings of images and texts", image.shape[1], text.shape[1])
    need_equal("meaning", "numbers of embedded images and texts", len(image), len(text))
    if len(image) < LEAST:
        return None
    return Embeddings(source, image_items, text_items, centre(image), centre(text))


def judge_meaning(sides: Sides, embeddings: Embeddings) -> Meanings:
    """MS of each modality and MMS across them without the matched pairs, each beside chance.

    One image and one caption per record: five captions of an image are near copies and would raise every score.
    """
    image, text = (
        csr_array(codes[items])
        for codes, items in ((sides.image.codes, embeddings.image_items), (sides.text.codes, embeddings.text_items))
    )
    sums = [sum_meaning(image, embeddings.image), sum_meaning(text, embeddings.text)]
    matched = sum_pairs(image, text, embeddings.image, embeddings.text)
    across = measure_multimodal(sums[0], sums[1], matched)
    own = [measure_monosemanticity(one) for one in sums]
    within = [measure_consistency(one) for one in sums]
    is_about = (np.nan_to_num(within[0]) > 0) & (np.nan_to_num(within[1]) > 0)
    agreement = divide(across.score, np.sqrt(np.where(is_about, within[0] * within[1], np.nan)))
    return Meanings(own[0], own[1], across, np.clip(agreement, -1, 1))


def sum_meaning(codes: csr_array, vectors: Float[np.ndarray, "row width"]) -> SemanticSums:
    """The sums of all rows, in blocks."""
    parts = [sum_semantics(csr_array(codes[rows]), vectors[rows]) for rows in iterate_blocks(len(vectors))]
    whole = parts[0]
    for part in parts[1:]:
        whole = add_semantics(whole, part)
    return whole
