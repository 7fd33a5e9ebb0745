"""Moments of the activations of a hook point, accumulated while they are written."""

import importlib.util
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float64
from safetensors import numpy as safetensors

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
"""Of the norms, that are reported."""
BINS_PER_OCTAVE = 64
"""Of the norm histogram; a quantile is off by at most 1/128 of itself."""
MANTISSA_BITS = 17
"""Of a float32 that a bin spans: 2**17 neighbouring floats share a bin, 64 bins lie between two powers of two."""
FIRST_BIN = (127 - 24) * BINS_PER_OCTAVE
"""Norms below 2**-24 fall into the first bin, norms from 2**40 on into the last."""
N_BINS = (24 + 40) * BINS_PER_OCTAVE
SLICE_VALUES = 96 << 10
"""Treated at once, so that they stay in the processor's cache: twice as fast as a whole chunk of 4 MiB (2-core Zen 4)."""
GROUP_ROWS = 16
"""Rows summed in float32 before the sum goes on in float64: 1.5 times as fast as float64 alone, error below 1e-6 of |x|."""

BLOCK_WIDTH = 64
"""Values of a row that are added to each other side by side."""
FUSED_VALUES = 1 << 17
"""So many values at once are worth loading numba and compiling, which takes seconds once; both ways give the same bits."""

SUMS = ("sum", "sum_of_squares", "sum_of_norms")
"""What of a state is a sum of float64."""

State = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Moments:
    """What is known about the activations of a hook point without reading them again."""

    count: int
    """Rows."""
    mean: Float64[np.ndarray, "width"]
    second_moment: Float64[np.ndarray, "width"]
    """Mean of x**2 per dimension; the variance is second_moment - mean**2."""
    mean_norm: float
    """Mean of the Euclidean norm of a row."""
    max_abs: float
    """Largest |x|."""
    norm_quantiles: Mapping[float, float]
    """Quantile -> norm. From a histogram with 64 bins per octave: off by at most 0.8 %; 0 and 1 are exact."""


def empty_state(width: int) -> State:
    """The state of no rows."""
    return {
        "count": np.zeros(1, np.int64),
        "sum": np.zeros(width, np.float64),
        "sum_of_squares": np.zeros(width, np.float64),
        "sum_of_norms": np.zeros(1, np.float64),
        "max_abs": np.zeros(1, np.float32),
        "norm_range": np.array([np.inf, -np.inf], np.float32),
        "norm_histogram": np.zeros(N_BINS, np.int64),
    }


class Scratch:
    """Memory that `add_rows` computes in: fresh pages for every slice cost more than what is computed in them."""

    def __init__(self, width: int) -> None:
        self.rows = max(1, SLICE_VALUES // width // GROUP_ROWS) * GROUP_ROWS
        """Of a slice."""
        self._numbers = np.empty((self.rows, width), np.float32)
        self._squares = np.empty((self.rows, width), np.float32)
        self._sums = np.empty((2, 0, width), np.float32)

    def read(self, stored: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """At most a slice of stored rows as numbers, and their squares; both until the next call."""
        numbers = self._numbers[: len(stored)]
        if stored.dtype == np.uint16:
            np.copyto(numbers, stored.view(ml_dtypes.bfloat16))
        elif stored.dtype == np.float16:
            # Exact in both; numpy's own conversion takes longer than all else here together.
            torch.from_numpy(numbers).copy_(torch.from_numpy(stored))
        else:
            numbers = stored
        return numbers, np.multiply(numbers, numbers, out=self._squares[: len(stored)])

    def sums(self, n_rows: int) -> npt.NDArray[np.float32]:
        """Room for the sums of all groups of so many rows, and of their squares: [2, group, width]."""
        n_groups = -(-n_rows // GROUP_ROWS)
        if n_groups > self._sums.shape[1]:
            self._sums = np.empty((2, n_groups, self._sums.shape[2]), np.float32)
        return self._sums[:, :n_groups]


def add_rows(state: State, rows: npt.NDArray[Any], scratch: Scratch) -> None:
    """Add rows [row, width], as stored (uint16 holds the bits of bfloat16), in place.

    Which numbers are added first depends only on their place in `rows`, so that equal calls give equal bits.
    """
    if not len(rows):
        return
    sums, squared_norms = scratch.sums(len(rows)), np.empty(len(rows), np.float32)
    if rows.size >= FUSED_VALUES and importlib.util.find_spec("numba") is not None:
        from thresher.data.store.fused import sum_rows

        largest = sum_rows(rows, sums, squared_norms)
    else:
        largest = _sum_slices(rows, scratch, sums, squared_norms)
    state["count"] += len(rows)
    state["sum"] += sums[0].sum(axis=0, dtype=np.float64)
    state["sum_of_squares"] += sums[1].sum(axis=0, dtype=np.float64)
    state["max_abs"] = np.maximum(state["max_abs"], largest, dtype=np.float32)
    _add_norms(state, np.sqrt(squared_norms))


def _sum_slices(
    rows: npt.NDArray[Any], scratch: Scratch, sums: npt.NDArray[np.float32], squared_norms: npt.NDArray[np.float32]
) -> Any:
    """Fill `sums` [2, group, width] of rows and of their squares and `squared_norms` [row]; gives the largest |x|."""
    largest = np.uint32(0)
    for start in range(0, len(rows), scratch.rows):
        part, squares = scratch.read(rows[start : start + scratch.rows])
        for values, out in zip((part, squares), sums, strict=True):
            _sum_groups(values, out[start // GROUP_ROWS :])
        # The bits without the sign are in the order of the absolute values; the signed maximum leaves out negative ones.
        tops = part.view(np.uint32).max(), part.view(np.int32).max().view(np.uint32)
        largest = max(largest, *(top & np.uint32(0x7FFFFFFF) for top in tops))
        squared_norms[start : start + len(part)] = _sum_rows(squares)
    return largest.view(np.float32)


def _sum_rows(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The sum of each row, in an order that is fast here and in compiled loops: of its blocks to one, of that, of the rest."""
    n_blocks = values.shape[1] // BLOCK_WIDTH
    rest = values[:, n_blocks * BLOCK_WIDTH :].sum(axis=1)
    if not n_blocks:
        return rest
    blocks = values[:, : n_blocks * BLOCK_WIDTH].reshape(len(values), n_blocks, BLOCK_WIDTH)
    return blocks.sum(axis=1).sum(axis=1) + rest


def _sum_groups(values: npt.NDArray[np.float32], sums: npt.NDArray[np.float32]) -> None:
    """Sums of the groups of [row, width] into the first of `sums`; the last group may have fewer rows."""
    n_groups = len(values) // GROUP_ROWS
    whole = values[: n_groups * GROUP_ROWS].reshape(n_groups, GROUP_ROWS, values.shape[1])
    np.add.reduce(whole, axis=1, out=sums[:n_groups])
    if n_groups * GROUP_ROWS < len(values):
        np.add.reduce(values[n_groups * GROUP_ROWS :], axis=0, out=sums[n_groups])


def _add_norms(state: State, norms: npt.NDArray[np.float32]) -> None:
    low, high = state["norm_range"]
    bins = (norms.view(np.uint32) >> MANTISSA_BITS).astype(np.int64) - FIRST_BIN
    state["sum_of_norms"] += norms.sum(dtype=np.float64)
    state["norm_range"] = np.array([min(low, norms.min()), max(high, norms.max())], np.float32)
    state["norm_histogram"] += np.bincount(np.clip(bins, 0, N_BINS - 1), minlength=N_BINS)


class ExactSum:
    """The sum of float64 arrays, rounded once at the end: the same bits in whatever order they come.

    Keeps partial sums that do not overlap (Shewchuk 1997, Grow-Expansion), two or three of them for usual numbers.
    """

    def __init__(self) -> None:
        self._partials: list[npt.NDArray[np.float64]] = []

    def add(self, values: npt.NDArray[np.float64]) -> None:
        """Add an array of the same shape as all others."""
        partials: list[npt.NDArray[np.float64]] = []
        for partial in self._partials:
            total = values + partial
            shift = total - values
            rest = (values - (total - shift)) + (partial - shift)
            if rest.any():
                partials.append(rest)
            values = total
        self._partials = [*partials, values]

    def round(self) -> npt.NDArray[np.float64]:
        """The sum."""
        return np.array([math.fsum(column) for column in np.stack(self._partials, axis=1).tolist()], np.float64)


def add_states(states: Iterable[State], width: int) -> State:
    """The state of the rows of all states, whatever their order."""
    total, sums = empty_state(width), {name: ExactSum() for name in SUMS}
    for name, exact in sums.items():
        exact.add(total[name])
    for state in states:
        for name in ("count", "norm_histogram"):
            total[name] = total[name] + state[name]
        for name, exact in sums.items():
            exact.add(state[name])
        low, high = np.stack([total["norm_range"], state["norm_range"]]).T
        total["max_abs"] = np.maximum(total["max_abs"], state["max_abs"])
        total["norm_range"] = np.array([low.min(), high.max()], np.float32)
    return total | {name: exact.round() for name, exact in sums.items()}


def summarize(state: State) -> Moments:
    """The moments of a state; zeros when it has no rows."""
    count = int(state["count"][0])
    n = max(count, 1)
    return Moments(
        count=count,
        mean=state["sum"] / n,
        second_moment=state["sum_of_squares"] / n,
        mean_norm=float(state["sum_of_norms"][0]) / n,
        max_abs=float(state["max_abs"][0]),
        norm_quantiles={quantile: _norm_quantile(state, quantile) for quantile in QUANTILES},
    )


def dump_states(states: Mapping[str, State]) -> bytes:
    """Hook point -> state as safetensors; tensors are called `<hook point>/<name>`, histograms without empty ends."""
    return safetensors.save({f"{hook}/{name}": value for hook, state in states.items() for name, value in _trim(state).items()})


def load_states(data: bytes, hook_points: Iterable[str]) -> dict[str, State]:
    """What `dump_states` wrote."""
    tensors = safetensors.load(data)
    names = [*empty_state(1), "norm_first_bin"]
    return {hook: _widen({name: tensors[f"{hook}/{name}"] for name in names}) for hook in hook_points}


def _trim(state: State) -> State:
    histogram = state["norm_histogram"]
    used = np.flatnonzero(histogram)
    first, last = (int(used[0]), int(used[-1])) if len(used) else (0, -1)
    return state | {"norm_histogram": histogram[first : last + 1], "norm_first_bin": np.array([first], np.int64)}


def _widen(state: State) -> State:
    first, trimmed = int(state.pop("norm_first_bin")[0]), state["norm_histogram"]
    return state | {"norm_histogram": np.pad(trimmed, (first, N_BINS - first - len(trimmed)))}


def _norm_quantile(state: State, quantile: float) -> float:
    count = int(state["count"][0])
    if count == 0:
        return 0.0
    low, high = (float(value) for value in state["norm_range"])
    if quantile in (0.0, 1.0):
        return high if quantile else low
    cumulative = np.cumsum(state["norm_histogram"])
    index = int(np.searchsorted(cumulative, quantile * count))
    edges = np.array([index, index + 1], np.uint32) + np.uint32(FIRST_BIN)
    middle = float((edges << np.uint32(MANTISSA_BITS)).view(np.float32).mean())
    return min(max(middle, low), high)
