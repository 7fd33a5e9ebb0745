"""Do two sets of vectors of the same items have the same geometry? CKA, CKNNA, mutual neighbours, SVCCA."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array

from thresher.analyze.metrics.grouping import count_rows
from thresher.analyze.metrics.needs import divide, need_equal, need_items, normalize_rows

ROWS_AT_ONCE = 1024


class CrossSums(NamedTuple):
    """Sums over items for CKA, float64."""

    xx: Float[np.ndarray, "d_x d_x"]
    yy: Float[np.ndarray, "d_y d_y"]
    xy: Float[np.ndarray, "d_x d_y"]
    x: Float[np.ndarray, " d_x"]
    y: Float[np.ndarray, " d_y"]
    n: float


def sum_cross(x: Float[np.ndarray, "item d_x"] | csr_array, y: Float[np.ndarray, "item d_y"] | csr_array) -> CrossSums:
    """Sums over items; row n of both is the same item. Sparse codes stay sparse until the [d_x, d_y] products."""
    need_equal("CKA", "items", _height(x), _height(y))
    return CrossSums(
        xx=_multiply(x, x),
        yy=_multiply(y, y),
        xy=_multiply(x, y),
        x=np.asarray(x.sum(axis=0), dtype=np.float64),
        y=np.asarray(y.sum(axis=0), dtype=np.float64),
        n=float(_height(x)),
    )


def measure_cka(sums: CrossSums) -> float:
    """Linear CKA, ||Xc^T Yc||_F^2 / (||Xc^T Xc||_F ||Yc^T Yc||_F) (arXiv 1905.00414, eq. 4), X and Y centred.

    1 for equal geometry up to rotation and scale. Biased upwards when items are fewer than dimensions: use
    `measure_cka_unbiased`. NaN when all rows of one are equal. Raises AnalysisError: fewer than 2 items.
    """
    need_items("CKA", int(sums.n), 2, "items")
    pairs = ((sums.xx, sums.x, sums.x), (sums.yy, sums.y, sums.y), (sums.xy, sums.x, sums.y))
    xx, yy, xy = (float(np.square(gram - np.outer(a, b) / sums.n).sum()) for gram, a, b in pairs)
    floor = 1e-24 * float(np.square(sums.xx).sum() * np.square(sums.yy).sum())
    return float(divide(xy, float(np.sqrt(xx * yy)) if xx * yy > floor else 0.0))


def measure_cka_unbiased(x: Float[np.ndarray, "item d_x"], y: Float[np.ndarray, "item d_y"]) -> float:
    """CKA with the unbiased HSIC (arXiv 2010.15327, eq. 3): 0 in expectation for unrelated sets, may be negative.

    Costs O(item^2): subsample. Raises AnalysisError: fewer than 4 items.
    """
    need_items("unbiased CKA", len(x), 4, "items")
    kernels = x @ x.T, y @ y.T
    return _normalize_hsic(*kernels)


def measure_cknna(x: Float[np.ndarray, "item d_x"], y: Float[np.ndarray, "item d_y"], k: int) -> float:
    """CKNNA (arXiv 2405.07987, appendix A): unbiased CKA of cosines among pairs that are among the `k` nearest in both sets.

    As in the authors' code, masks are not made symmetric: the trace counts pairs that are neighbours in both directions.
    Rows get unit norm. Depends on the number of items and on `k`: quote both. NaN when no neighbours are shared.
    Raises AnalysisError: fewer than 4 items, or not more than `k`.
    """
    need_items("CKNNA", len(x), max(4, k + 1), "items")
    kernels = [unit @ unit.T for unit in (normalize_rows(x), normalize_rows(y))]
    near = [_find_neighbours(kernel, k) for kernel in kernels]
    both = near[0] & near[1]
    cross = _hsic(both * kernels[0], both * kernels[1])
    alone = [_hsic(mask * kernel, mask * kernel) for mask, kernel in zip(near, kernels, strict=True)]
    product = alone[0] * alone[1]
    return float(divide(cross, float(np.sqrt(product)) if product > 0 else 0.0)) if both.any() else float("nan")


class Neighbours(NamedTuple):
    """How many neighbours two sets share."""

    overlap: float
    """Mean share of an item's `k` nearest in one set that are among its `k` nearest in the other."""
    chance: float
    """The same for unrelated sets: k / (items - 1)."""


def compare_neighbours(x: Float[np.ndarray, "item d_x"], y: Float[np.ndarray, "item d_y"], k: int) -> Neighbours:
    """Mutual nearest neighbours by cosine, the item itself excluded (arXiv 2405.07987). Depends on items and `k`: quote both.

    Blocks of rows bound the memory. Raises AnalysisError: not more items than `k`.
    """
    need_items("mutual neighbours", len(x), k + 1, "items")
    units, shared = (normalize_rows(x), normalize_rows(y)), 0
    for start in range(0, len(x), ROWS_AT_ONCE):
        near = [_nearest(unit[start : start + ROWS_AT_ONCE] @ unit.T, k, start) for unit in units]
        shared += sum(len(np.intersect1d(a, b)) for a, b in zip(*near, strict=True))
    return Neighbours(shared / (k * len(x)), k / (len(x) - 1))


def measure_svcca(x: Float[np.ndarray, "item d_x"], y: Float[np.ndarray, "item d_y"], n_directions: int) -> float:
    """Mean canonical correlation of the leading directions of both (arXiv 1706.05806). Noisy, and depends on
    `n_directions`: prefer CKA.

    Columns are standardised first, constant ones left out. Raises AnalysisError: no more items than directions, or fewer
    directions that vary.
    """
    need_items("SVCCA", len(x), n_directions + 1, "items")
    bases = [_lead(side, n_directions) for side in (x, y)]
    return float(np.minimum(np.linalg.svd(bases[0].T @ bases[1], compute_uv=False), 1).mean())


def _multiply(a: np.ndarray | csr_array, b: np.ndarray | csr_array) -> np.ndarray:
    product = a.T @ b
    return np.asarray(product if isinstance(product, np.ndarray) else product.toarray(), dtype=np.float64)


def _height(x: np.ndarray | csr_array) -> int:
    return len(x) if isinstance(x, np.ndarray) else count_rows(x)


def _hsic(k: np.ndarray, kernel: np.ndarray) -> float:
    """Unbiased HSIC of Song et al. 2012, eq. 5, up to its factor 1 / (n (n - 3)); diagonals are ignored."""
    n = len(k)
    k, kernel = k * (1 - np.eye(n)), kernel * (1 - np.eye(n))
    trace, sums = float((k * kernel.T).sum()), float(k.sum() * kernel.sum())
    return trace + sums / ((n - 1) * (n - 2)) - 2 * float(k.sum(axis=0) @ kernel.sum(axis=1)) / (n - 2)


def _normalize_hsic(k: np.ndarray, kernel: np.ndarray) -> float:
    product = _hsic(k, k) * _hsic(kernel, kernel)
    return float(divide(_hsic(k, kernel), float(np.sqrt(product)) if product > 0 else 0.0))


def _nearest(cosine: np.ndarray, k: int, start: int) -> Int[np.ndarray, "row k"]:
    rows = np.arange(len(cosine))
    cosine[rows, start + rows] = -np.inf
    return np.argsort(-cosine, axis=1, kind="stable")[:, :k]


def _find_neighbours(cosine: np.ndarray, k: int) -> Bool[np.ndarray, "item item"]:
    near = np.zeros(cosine.shape, dtype=bool)
    np.put_along_axis(near, _nearest(cosine.copy(), k, 0), values=True, axis=1)
    return near


def _lead(x: np.ndarray, n_directions: int) -> np.ndarray:
    """Orthonormal coordinates of the items along the leading directions of the standardised columns."""
    centred = x - x.mean(axis=0)
    spread = centred.std(axis=0)
    varies = spread > 1e-12 * np.abs(x).max()
    u, singular, _ = np.linalg.svd(centred[:, varies] / spread[varies], full_matrices=False)
    found = int((singular > 1e-10 * singular.max(initial=0)).sum())
    need_items("SVCCA", found, n_directions, "directions that vary")
    return u[:, :n_directions]
