"""One pursuit, read at every number of steps."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thresher.train.kernels.codes import Codes
from thresher.train.kernels.prepared import Prepared
from thresher.train.kernels.pursuit import pursue
from thresher.train.kernels.rule import Method, Sign


class Nested(NamedTuple):
    """A pursuit of k_max steps; its first k entries are the pursuit of k steps, for every k. Without gradients."""

    codes: Codes
    """Of k_max steps."""
    norms: Float[Tensor, "row step"]
    """Norm of the residual after 0, 1, ..., k_max steps; it never grows."""

    def cut(self, k: int) -> Codes:
        """The codes of `k` steps."""
        return Codes(self.codes.indices[:, :k], self.codes.values[:, :k])

    def explain(self) -> Float[Tensor, "row step"]:
        """Share of each row's squared norm that 0, 1, ..., k_max steps explain; 1 for a row of zeros."""
        square = self.norms.double().square()
        return torch.where(square[:, :1] > 0, 1 - square / square[:, :1], 1.0)

    def count_active(self) -> Int[Tensor, "row step"]:
        """L0 after 0, 1, ..., k_max steps: how many different atoms were picked."""
        indices, values = self.codes
        # Padding goes to an atom beyond all others; a stable sort then puts the first pick of an atom before its repeats.
        marked, order = torch.where(values != 0, indices, torch.iinfo(torch.int64).max).sort(dim=1, stable=True)
        is_new = torch.ones_like(values, dtype=torch.int64)
        is_new[:, 1:] = marked[:, 1:] != marked[:, :-1]
        is_new = torch.zeros_like(is_new).scatter_(1, order, is_new) * (values != 0)
        return torch.cat([torch.zeros_like(is_new[:, :1]), is_new.cumsum(1)], 1)

    def pool_r2(self, x: Float[Tensor, "row d_in"], mean: Float[Tensor, "d_in"]) -> Float[Tensor, "step"]:
        """1 - sum ||residual||^2 / sum ||x - mean||^2 over these rows, after 0, 1, ..., k_max steps."""
        return 1 - self.norms.double().square().sum(0) / (x.double() - mean).square().sum()


@torch.no_grad()
def pursue_nested(
    x: Float[Tensor, "row d_in"],
    dictionary: Float[Tensor, "d_sae d_in"],
    k_max: int,
    *,
    residual_tol: float | None = None,
    sign: Sign = "relu",
    reselect: bool = True,
    method: Method = "auto",
    prepared: Prepared | None = None,
    check: bool = True,
) -> Nested:
    """What `pursue` finds for every k up to `k_max`, at the cost of one run and O(row k_max d_in) for the norms."""
    codes, _ = pursue(
        x,
        dictionary,
        k_max,
        residual_tol=residual_tol,
        sign=sign,
        reselect=reselect,
        method=method,
        prepared=prepared,
        check=check,
    )
    residual = x.to(codes.values.dtype, copy=True)
    norms = [residual.norm(dim=1)]
    for picks, values in zip(codes.indices.T, codes.values.T, strict=True):
        residual.addcmul_(dictionary.index_select(0, picks).to(residual.dtype), values[:, None], value=-1)
        norms.append(residual.norm(dim=1))
    return Nested(codes, torch.stack(norms, 1))


def find_smallest_k(r2: Float[Tensor, "step"], target: float) -> int | None:
    """The fewest steps whose R2 (of `Nested.pool_r2`, or any other that rises) is at least `target`; None if none is."""
    reached = (r2 >= target).nonzero()
    return int(reached[0, 0]) if len(reached) else None
