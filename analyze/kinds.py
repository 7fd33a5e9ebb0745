"""Where image and text stand in one sequence, what features do on the tokens of either."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from thresher.analyze.metrics.grouping import membership
from thresher.analyze.metrics.modality import ratio
from thresher.analyze.panels import Panel
from thresher.data.store import Store, TokenKind

KINDS = {"image": TokenKind.IMAGE, "text": TokenKind.TEXT}
"""What is told apart, in the order of the sums; other tokens (special ones, those of a template) are neither."""


class KindSums(NamedTuple):
    """Sums over the rows of each of `KINDS`, float64; sums of two chunks are their sum."""

    rows: Float[np.ndarray, " kind"]
    fires: Float[np.ndarray, "kind feature"]
    """Rows with z != 0."""
    energy: Float[np.ndarray, "kind feature"]
    """Sum of z^2."""


def read_kinds(store: Store, panel: Panel) -> Int[np.ndarray, " row"] | None:
    """Index into `KINDS` of each row of a panel, -1 for neither; None where the rows are not of both."""
    name = panel.hook_point
    if panel.modality != "text" or "kind" not in store.columns_of(name):
        return None
    stored = store.column_of(name, "kind")[panel.rows]
    kinds = np.full(len(stored), -1, dtype=np.int8)
    for index, kind in enumerate(KINDS.values()):
        kinds[stored == kind] = index
    return kinds if all((kinds == index).any() for index in range(len(KINDS))) else None


def sum_kinds(codes: csr_array, kinds: Int[np.ndarray, " row"]) -> KindSums:
    """The sums of codes [row, feature]."""
    group = np.where(kinds < 0, len(KINDS), kinds)
    each = membership(group, len(KINDS) + 1)
    fires, squares = codes.copy(), codes.copy()
    fires.data, squares.data = (codes.data != 0).astype(np.float64), codes.data.astype(np.float64) ** 2
    rows = np.bincount(group, minlength=len(KINDS) + 1)[: len(KINDS)].astype(np.float64)
    sums = (np.asarray((each @ one).toarray())[: len(KINDS)] for one in (fires, squares))
    return KindSums(rows, *sums)


def add_kinds(first: KindSums, second: KindSums) -> KindSums:
    """The sums of two chunks together."""
    return KindSums(*(one + other for one, other in zip(first, second, strict=True)))


def tabulate_kinds(sums: KindSums, norm: Float[np.ndarray, " feature"]) -> dict[str, Any]:
    """Columns of features.parquet: firing rows, rate and E[z^2] on the tokens of images and of texts, and `mu_tokens`.

    `norm` are the lengths of the atoms. `mu_tokens` is the share of energy_image_tokens in the sum of both energies: 1 for a
    feature of image tokens alone, 0 for one of text tokens alone, NaN where it fires on neither.
    """
    energy = sums.energy / sums.rows[:, None] * norm**2
    columns: dict[str, Any] = {}
    for index, name in enumerate(KINDS):
        columns |= {
            f"n_fire_{name}_tokens": np.rint(sums.fires[index]).astype(np.int64),
            f"rate_{name}_tokens": sums.fires[index] / sums.rows[index],
            f"energy_{name}_tokens": energy[index],
        }
    return columns | {"mu_tokens": ratio(energy[0], energy[1])}
