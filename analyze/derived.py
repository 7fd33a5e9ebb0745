"""What is made of codes and items that do not fit into memory: read in blocks, written to files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array

from thresher.analyze.statistics.rows import RowsWriter, iterate_blocks, iterate_rows, read_entries, release, shape_of
from thresher.data.store import Store


def scale_features(codes: csr_array, scale: Float[np.ndarray, " feature"], folder: Path | None = None) -> csr_array:
    """Codes times a number per feature; with a folder they lie in files there."""
    writer = RowsWriter(len(scale), folder)
    for rows in iterate_rows(codes):
        part = csr_array(codes[rows])
        part.data = part.data * scale[part.indices]
        writer.append(part)
    return writer.finish()


def take_rows(codes: csr_array, rows: Int[np.ndarray, " taken"], folder: Path | None = None) -> csr_array:
    """Some rows of codes, in the order asked for; with a folder they lie in files there."""
    writer = RowsWriter(shape_of(codes)[1], folder)
    for block in iterate_blocks(len(rows)):
        writer.append(csr_array(codes[rows[block]]))
        release(codes)
    return writer.finish()


def average_rows(codes: csr_array) -> Float[np.ndarray, " feature"]:
    """The mean row."""
    n_rows, n_features = shape_of(codes)
    total = np.zeros(n_features)
    for rows in iterate_rows(codes):
        entries = read_entries(codes, rows)
        total += np.bincount(entries.feature, weights=entries.value, minlength=n_features)
    return total / max(n_rows, 1)


def find_alive(codes: csr_array) -> Bool[np.ndarray, " feature"]:
    """Which features have an entry in any row."""
    alive = np.zeros(shape_of(codes)[1], dtype=bool)
    for rows in iterate_rows(codes):
        alive[read_entries(codes, rows).feature] = True
    return alive


def read_thumbnails(store: Store, images: Int[np.ndarray, " image"]) -> list[bytes | None]:
    """The thumbnails of some rows of the table of images. Memory: those, and one part of the table."""
    found: list[bytes | None] = [None] * len(images)
    for inside, thumbnails in _walk_thumbnails(store, images):
        for place, data in zip(np.flatnonzero(inside).tolist(), thumbnails.to_pylist(), strict=True):
            found[place] = data
    return found


def measure_thumbnails(store: Store, images: Int[np.ndarray, " image"]) -> Int[np.ndarray, " image"]:
    """Bytes of the thumbnails of some rows of the table of images; 0 where there is none. Memory: one part of the table."""
    sizes = np.zeros(len(images), np.int64)
    for inside, thumbnails in _walk_thumbnails(store, images):
        lengths = pc.call_function("binary_length", [thumbnails])
        sizes[inside] = lengths.fill_null(0).to_numpy(zero_copy_only=False)
    return sizes


def _walk_thumbnails(store: Store, images: Int[np.ndarray, " image"]) -> Iterator[tuple[Bool[np.ndarray, " image"], Any]]:
    """Part by part, which of the images it has, and their thumbnails."""
    for before, tables, _ in store.parts():
        start, table = before["image"], tables["image"]
        inside = (images >= start) & (images < start + table.num_rows)
        if inside.any():
            yield inside, table["thumbnail"].take(pa.array(images[inside] - start))
