"""Which codes belong together: images, and the texts that each of them is paired with."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from scipy.sparse import csr_array

from thresher.analyze.statistics.rows import BLOCK, RowsWriter, iterate_blocks, release, shape_of, transpose
from thresher.errors import AnalysisError

TRIES = 100
"""How often texts that landed at their own record are swapped again."""


class Texts(NamedTuple):
    """The texts of each image added up, all with the same stored entries [image, feature]."""

    total: csr_array
    """Sum of z."""
    energy: csr_array
    """Sum of z^2."""
    fires: csr_array
    """How many of them have z != 0."""


class Pairing(NamedTuple):
    """Images that have a text, each with its texts. A sum over pairs is a sum over images with the texts added up.

    So five captions of an image cost one row, and everything that is linear in the texts stays exact.
    """

    image: csr_array
    """Codes of the images [image, feature]."""
    postings: csr_array
    """The same by feature [feature, image]."""
    texts: Texts
    n_texts: Int[np.ndarray, " image"]
    """Texts of each row of `texts`."""
    partner: Int[np.ndarray, " image"]
    """The row of `texts` that each image is paired with: its own, or another's when deranged."""
    record: Int[np.ndarray, " image"]
    """Which record each image is from; what is resampled and permuted."""

    @property
    def n_pairs(self) -> int:
        """Pairs of one image and one text."""
        return int(self.n_texts[self.partner].sum())

    @property
    def n_features(self) -> int:
        """Width of the codes."""
        return shape_of(self.image)[1]


class PairBlock(NamedTuple):
    """Consecutive images of a pairing with their texts."""

    image: csr_array
    texts: Texts
    n_texts: Int[np.ndarray, " image"]
    record: Int[np.ndarray, " image"]


def pair_codes(
    image: csr_array,
    text: csr_array,
    pairs: Int[np.ndarray, "pair 2"],
    record: Int[np.ndarray, " image"],
    scratch: Path | None = None,
) -> Pairing:
    """Pair codes of images with codes of texts (one row per item, both [item, feature]) by a table of (image row, text row).

    `record` is the record of each image row. Images without a text are left out, and texts without an image. With `scratch`
    what is made here lives in files there. Raises AnalysisError: no pairs, rows that do not exist, other widths.
    """
    _check(image, text, pairs)
    image, text = _clean(image), _clean(text)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    rows, first = np.unique(pairs[:, 0], return_index=True)
    bounds = np.append(first, len(pairs))
    n_features = shape_of(image)[1]
    folders = [None if scratch is None else scratch / name for name in ("image", "total", "energy", "fires")]
    writers = [RowsWriter(n_features, folder) for folder in folders]
    for block in iterate_blocks(len(rows), BLOCK):
        stored = slice(int(bounds[block.start]), int(bounds[block.stop]))
        unit = np.searchsorted(rows[block], pairs[stored, 0])
        texts = _add_up(csr_array(text[pairs[stored, 1]]), unit, block.stop - block.start)
        for writer, part in zip(writers, (csr_array(image[rows[block]]), *texts), strict=True):
            writer.append(part)
        release(image, text)
    kept, total, energy, fires = (writer.finish() for writer in writers)
    postings = transpose(kept, None if scratch is None else scratch / "postings")
    return Pairing(kept, postings, Texts(total, energy, fires), np.diff(bounds), np.arange(len(rows)), record[rows])


def _check(image: csr_array, text: csr_array, pairs: Int[np.ndarray, "pair 2"]) -> None:
    (n_images, n_features), (n_texts, n_others) = shape_of(image), shape_of(text)
    if n_features != n_others:
        raise AnalysisError(f"codes of images have {n_features} features, of texts {n_others}; use one dictionary")
    if len(pairs) == 0:
        raise AnalysisError("no pair of an image and a text: pairing cannot be measured; harvest images with their captions")
    for name, rows, n_rows in (("image", pairs[:, 0], n_images), ("text", pairs[:, 1], n_texts)):
        if rows.min() < 0 or rows.max() >= n_rows:
            raise AnalysisError(f"the pairs name {name} {rows.min()} to {rows.max()}, there are {n_rows}: codes of another run")


def _clean(codes: csr_array) -> csr_array:
    if codes.has_canonical_format and np.all(codes.data != 0):
        return codes
    codes = codes.copy()
    codes.sum_duplicates()
    codes.eliminate_zeros()
    return codes


def _add_up(text: csr_array, unit: Int[np.ndarray, " pair"], n_units: int) -> Texts:
    """Sums of rows that have the same unit (ascending), in the order of the rows."""
    n_features = shape_of(text)[1]
    values, features = text.data.astype(np.float64), text.indices.astype(np.int64)
    key = np.repeat(unit, np.diff(text.indptr)) * n_features + features
    order = np.argsort(key, kind="stable")
    key, values = key[order], values[order]
    first = np.flatnonzero(np.append(True, key[1:] != key[:-1])) if len(key) else np.zeros(0, np.int64)
    starts = np.searchsorted(key[first] // n_features, np.arange(n_units + 1))
    indices = (key[first] % n_features).astype(np.int32)
    sums = [np.add.reduceat(part, first) if len(first) else part for part in (values, values**2, np.ones_like(values))]
    total, energy, fires = (csr_array((part, indices, starts), shape=(n_units, n_features)) for part in sums)
    return Texts(total, energy, fires)


def iterate_pairs(pairing: Pairing) -> Iterator[PairBlock]:
    """The images in order, in blocks, each with the texts that it is paired with."""
    for rows in iterate_blocks(len(pairing.record)):
        partner = pairing.partner[rows]
        texts = Texts(*(csr_array(part[partner]) for part in pairing.texts))
        yield PairBlock(csr_array(pairing.image[rows]), texts, pairing.n_texts[partner], pairing.record[rows])
        release(pairing.image, *pairing.texts)


def derange(pairing: Pairing, seed: int) -> Pairing:
    """The same codes with the texts of each image given to an image of another record, at random.

    All texts of an image move together, so what five captions share does not look like pairing. Only an index changes: nothing
    is copied. Raises AnalysisError when one record has so many of the images that they cannot be kept apart.
    """
    generator = np.random.default_rng(seed)
    n = len(pairing.record)
    shuffled = generator.permutation(n)
    for _ in range(TRIES):
        stuck = np.flatnonzero(pairing.record[shuffled] == pairing.record)
        if len(stuck) == 0:
            return pairing._replace(partner=pairing.partner[shuffled])
        for here, there in zip(stuck, generator.integers(0, n, len(stuck)), strict=True):
            shuffled[[here, there]] = shuffled[[there, here]]
    raise AnalysisError(f"{n} images of {len(np.unique(pairing.record))} records cannot be paired with texts of other records")
