"""Codes row by row, in memory or in files: what is written in pieces of any size reads as one matrix."""

import mmap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from scipy.sparse import csr_array

from thresher.errors import AnalysisError

BLOCK = 8192
"""Rows that are summed together. A constant, no setting: so sums do not depend on how the rows arrived, to the last bit."""
LIMIT = 2**31 - 1
"""Entries that the 32-bit indices of one matrix can count."""


class Entries(NamedTuple):
    """Stored entries of consecutive rows, row by row."""

    row: np.ndarray
    """Which row [entry], int64, counted from the first."""
    feature: np.ndarray
    """Which feature [entry], int32."""
    value: np.ndarray
    """Its coefficient [entry], float64."""


class RowsWriter:
    """Collects rows of sparse matrices; with a folder they live in files there and memory holds 8 bytes per row."""

    def __init__(self, n_features: int, folder: Path | None = None) -> None:
        self._n_features = n_features
        self._folder = folder
        self._lengths: list[np.ndarray] = []
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []
        self._n_entries = 0
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for path in self._paths(folder):
                path.write_bytes(b"")

    def append(self, rows: csr_array) -> None:
        """Add rows [row, feature]. Raises AnalysisError: another width, or more entries than 32 bits count."""
        if shape_of(rows)[1] != self._n_features:
            raise AnalysisError(f"codes of {shape_of(rows)[1]} features do not continue codes of {self._n_features}")
        self._n_entries += rows.nnz
        if self._n_entries > LIMIT:
            raise AnalysisError(f"more than {LIMIT} active features in all rows; set `limit` to analyze fewer records")
        self._lengths.append(np.diff(rows.indptr).astype(np.int64))
        values, features = rows.data.astype(np.float64, copy=False), rows.indices.astype(np.int32, copy=False)
        if self._folder is None:
            self._parts.append((values, features))
            return
        for path, array in zip(self._paths(self._folder), (values, features), strict=True):
            with path.open("ab") as file:
                array.tofile(file)

    def finish(self) -> csr_array:
        """All rows as one matrix. With a folder its entries are mapped from the files, which have to stay."""
        starts = np.cumsum(np.concatenate([[0], *self._lengths])).astype(np.int32)
        values, features = self._read()
        return csr_array((values, features, starts), shape=(len(starts) - 1, self._n_features))

    def _read(self) -> tuple[np.ndarray, np.ndarray]:
        if self._folder is None or self._n_entries == 0:
            parts = [(np.zeros(0), np.zeros(0, np.int32)), *self._parts]
            return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
        values, features = self._paths(self._folder)
        return np.memmap(values, np.float64, "r"), np.memmap(features, np.int32, "r")

    @staticmethod
    def _paths(folder: Path) -> tuple[Path, Path]:
        return folder / "values.f8", folder / "features.i4"


def run_both(first: Callable[[], np.ndarray], second: Callable[[], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Two results, made at once where there are threads to do so: SciPy multiplies without the interpreter's lock."""
    if torch.get_num_threads() < 2:
        return first(), second()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(first)
        other = second()
        return waiting.result(), other


def shape_of(codes: csr_array) -> tuple[int, int]:
    """Rows and columns of a sparse matrix."""
    return cast(tuple[int, int], codes.shape)


def iterate_blocks(n_rows: int, block: int = BLOCK) -> Iterator[slice]:
    """Slices of `block` rows; the last one may be shorter."""
    for start in range(0, n_rows, block):
        yield slice(start, min(start + block, n_rows))


def iterate_rows(*matrices: csr_array, block: int = BLOCK) -> Iterator[slice]:
    """Slices of the rows that all matrices have; what was read of mapped files is let go after each."""
    for rows in iterate_blocks(shape_of(matrices[0])[0], block):
        yield rows
        release(*matrices)


def release(*matrices: csr_array) -> None:
    """Let go of the pages of mapped entries: they leave the process's memory and are read again when needed."""
    for matrix in matrices:
        _let_go(matrix.data)
        _let_go(matrix.indices)


def _let_go(array: np.ndarray) -> None:
    below: object = array
    while below is not None and not isinstance(below, mmap.mmap):
        below = getattr(below, "base", None)
    if below is not None and hasattr(mmap, "MADV_DONTNEED"):
        below.madvise(mmap.MADV_DONTNEED)


def read_entries(codes: csr_array, rows: slice) -> Entries:
    """The stored entries of some rows. Costs nothing but the row numbers."""
    starts = codes.indptr[rows.start : rows.stop + 1]
    stored = slice(int(starts[0]), int(starts[-1]))
    row = np.repeat(np.arange(rows.stop - rows.start), np.diff(starts))
    return Entries(row, codes.indices[stored], codes.data[stored])


def transpose(codes: csr_array, folder: Path | None = None) -> csr_array:
    """The matrix [feature, row], rows ascending within a feature; with a folder its entries live in files there."""
    if folder is None:
        return csr_array(codes.T.tocsr())
    folder.mkdir(parents=True, exist_ok=True)
    n_rows, n_features = shape_of(codes)
    starts = np.zeros(n_features + 1, np.int64)
    for block in iterate_rows(codes):
        starts[1:] += np.bincount(read_entries(codes, block).feature, minlength=n_features)
    starts = np.cumsum(starts)
    shape = (max(int(starts[-1]), 1),)
    values = np.memmap(folder / "values.f8", np.float64, "w+", shape=shape)
    rows = np.memmap(folder / "rows.i4", np.int32, "w+", shape=shape)
    cursor = starts[:-1].copy()
    for block in iterate_rows(codes):
        entries = read_entries(codes, block)
        order = np.argsort(entries.feature, kind="stable")
        feature = entries.feature[order]
        counts = np.bincount(feature, minlength=n_features)
        place = cursor[feature] + np.arange(len(feature)) - np.repeat(np.cumsum(counts) - counts, counts)
        values[place], rows[place] = entries.value[order], block.start + entries.row[order]
        cursor += counts
        _let_go(values)
        _let_go(rows)
    stored = int(starts[-1])
    return csr_array((values[:stored], rows[:stored], starts.astype(np.int32)), shape=(n_features, n_rows))
