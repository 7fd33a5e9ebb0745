"""The features of a crosscoder by hook point: whose each is, and how alike its parts for different hook points are."""

import csv
import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from thresher.files import write_atomic
from thresher.train.aligned import AlignedSAE
from thresher.train.arch.crosscoder import block_norms, relative_norms
from thresher.train.codes import Codes
from thresher.train.kernels import sparse_encode
from thresher.train.normalize import Normalizer

ROWS_AT_ONCE = 2048
EXCLUSIVE = 0.9
"""Share in an atom's norms from which on it belongs to one hook point alone."""
SHARED = 0.2
"""How far its shares may be from equal ones, relative, for an atom that all hook points share: 0.4 to 0.6 for two of them."""

Column = npt.NDArray[Any]


class _Sums(NamedTuple):
    """Over rows, per atom in float64."""

    fires: Tensor
    value: Tensor
    square: Tensor
    missed: Tensor
    """[d_sae, side]: value times the inner product of the error of a side with the atom's main part."""


@torch.no_grad()
def describe_sides(
    sae: AlignedSAE, normalizer: Normalizer, names: Sequence[str], chunks: Iterable[Float[Tensor, "_ d_in"]]
) -> dict[str, Column]:
    """A table with a row per feature, by column; `chunks` are raw rows of the hook points `names` side by side.

    `fires` and `mean_value` (where it fires); for each hook point `norm/...`, that of the atom's part in the units of its raw
    activations, and `relative_norm/...`, its share in the norms in normalised activations (0 to 1, 1 in all); `cosine/a|b` of
    two parts of equal width; `belongs_to`: a hook point with a share of 0.9 or more, `shared` (equal shares within a fifth),
    `between`, or `dead`. Where all widths are equal also `scaling/...`, after the latent scaling of arXiv 2504.02922: the
    number b with which b f d fits best what all other atoms leave of the hook point's rows, with the code f and the part d for
    the hook point of largest share. An atom that looks like that one's own only because its other parts have shrunk has a
    scaling near 1 for the others as well; one that is its own has 0 there.
    """
    widths = list(sae.widths)
    dictionary = sae.dictionary.detach()
    parts = dictionary.split(widths, dim=1)
    shares = relative_norms(dictionary, sae.widths)
    main = _pick_main(parts, shares) if len(set(widths)) == 1 else None
    sums = _sum_up(sae, normalizer, main, chunks)
    table: dict[str, Column] = {
        "feature": np.arange(sae.d_sae),
        "fires": sums.fires.long().cpu().numpy(),
        "mean_value": (sums.value / sums.fires).cpu().numpy(),
        "belongs_to": _classify(shares.cpu().numpy(), sums.fires.cpu().numpy() > 0, names),
    }
    norms = block_norms(dictionary, sae.widths) / normalizer.scale.to(dictionary.device)
    for kind, values in (("norm", norms), ("relative_norm", shares)):
        table |= {f"{kind}/{name}": own.cpu().numpy() for name, own in zip(names, values.T, strict=True)}
    for (a, first), (b, second) in itertools.combinations(zip(names, parts, strict=True), 2):
        if first.shape == second.shape:
            table[f"cosine/{a}|{b}"] = functional.cosine_similarity(first, second, dim=1).cpu().numpy()
    if main is not None:
        for index, (name, part) in enumerate(zip(names, parts, strict=True)):
            fitted = sums.missed[:, index] + sums.square * (main * part).sum(1).double()
            table[f"scaling/{name}"] = (fitted / (sums.square * main.double().square().sum(1))).cpu().numpy()
    return table


def summarize_sides(table: Mapping[str, Column], n_rows: int) -> dict[str, Any]:
    """How many features belong to each hook point, are shared, are between or dead; and `l0`, the mean number of active
    features that reach each hook point, with a share of more than a tenth there."""
    names = [name.partition("/")[2] for name in table if name.startswith("relative_norm/")]
    owners = table["belongs_to"]
    counts = {name: int((owners == name).sum()) for name in (*names, "shared", "between", "dead")}
    reaches = {name: table[f"relative_norm/{name}"] > 1 - EXCLUSIVE for name in names}
    return {
        "features": counts,
        "l0": {name: float(table["fires"][reached].sum() / n_rows) for name, reached in reaches.items()},
    }


def write_sides(table: Mapping[str, Column], folder: Path) -> list[Path]:
    """Write `features.parquet` and `features.csv`; NaN is an empty cell in both."""
    arrays = {name: pa.array(column, from_pandas=True) for name, column in table.items()}
    made = pa.table(arrays)
    buffer = pa.BufferOutputStream()
    pq.write_table(made, buffer)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    writer.writerows(zip(*(array.to_pylist() for array in arrays.values()), strict=True))
    contents = {"features.parquet": buffer.getvalue().to_pybytes(), "features.csv": text.getvalue().encode()}
    for name, content in contents.items():
        write_atomic(folder / name, [content])
    return [folder / name for name in contents]


def _pick_main(parts: Sequence[Tensor], shares: Tensor) -> Tensor:
    """Of each atom the part for the hook point with the largest share."""
    return torch.stack(list(parts), 1)[torch.arange(len(shares), device=shares.device), shares.argmax(1)]


def _sum_up(sae: AlignedSAE, normalizer: Normalizer, main: Tensor | None, chunks: Iterable[Tensor]) -> _Sums:
    device, widths = sae.dictionary.device, list(sae.widths)
    total = torch.zeros(sae.d_sae, 3 + len(widths), dtype=torch.float64, device=device)
    for x in (part.to(device) for chunk in chunks for part in chunk.split(ROWS_AT_ONCE)):
        normalized = normalizer.normalize(x, 0)
        codes = sae.encode(normalized)
        columns = [(codes.values != 0).double(), codes.values.double(), codes.values.double().square()]
        if main is not None:
            errors = (normalized - sae.decode(codes)).split(widths, dim=1)
            columns += [_multiply(codes, error, main) for error in errors]
        for index, column in enumerate(columns):
            total[:, index].index_add_(0, codes.indices.flatten(), column.flatten())
    return _Sums(total[:, 0], total[:, 1], total[:, 2], total[:, 3:])


def _multiply(codes: Codes, error: Tensor, main: Tensor) -> Tensor:
    return codes.values.double() * sparse_encode(error.contiguous(), main, codes.indices).double()


def _classify(shares: npt.NDArray[Any], is_alive: npt.NDArray[np.bool_], names: Sequence[str]) -> Column:
    largest = shares.argmax(1)
    is_own = shares.max(1) >= EXCLUSIVE
    is_shared = (np.abs(shares * len(names) - 1) <= SHARED).all(1)
    owners = np.where(is_own, np.array(names, object)[largest], np.where(is_shared, "shared", "between"))
    return np.where(is_alive, owners, "dead").astype(object)
