"""What the input of a pursuit must be like. The checks of values make the host wait for the device."""

from typing import get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from thresher.train.kernels.rule import Rule, Sign

NORM_TOLERANCE = 1e-4
"""How far a norm may be from 1; in half precision as far as one rounding of the type moves it."""
NAMED_AT_MOST = 5


def check_shapes(x: Tensor, dictionary: Tensor) -> None:
    """Raise ValueError unless x is [row, d_in] and the dictionary [d_sae, d_in], of real numbers and on one device."""
    for name, tensor in (("x", x), ("the dictionary", dictionary)):
        if tensor.ndim != 2:
            raise ValueError(f"{name} has shape {list(tensor.shape)}: give a matrix, one vector of d_in numbers per row")
        if not tensor.is_floating_point():
            raise ValueError(f"{name} holds {tensor.dtype}: give real floating-point numbers")
    if x.shape[1] != dictionary.shape[1]:
        raise ValueError(f"x has width {x.shape[1]}, the dictionary {dictionary.shape[1]}: both must be d_in")
    if x.device != dictionary.device:
        raise ValueError(f"x is on {x.device}, the dictionary on {dictionary.device}: move one of them")
    if dictionary.shape[0] == 0:
        raise ValueError(f"the dictionary has shape {list(dictionary.shape)}: it needs at least one atom")


def check_rule(rule: Rule, d_sae: int) -> None:
    """Raise ValueError for a rule that no pursuit over `d_sae` atoms can follow."""
    if rule.k < 1:
        raise ValueError(f"k={rule.k}: pick at least 1 atom per row")
    if not rule.reselect and rule.k > d_sae:
        raise ValueError(f"k={rule.k}: without repeats, pick at most {d_sae} atoms, all that there are")
    if rule.sign not in get_args(Sign):
        raise ValueError(f"sign={rule.sign!r}: choose one of {', '.join(get_args(Sign))}")
    if rule.residual_tol is not None and not rule.residual_tol >= 0:
        raise ValueError(f"residual_tol={rule.residual_tol}: give a fraction of the row's norm, 0 or more, or None")


@torch.no_grad()
def check_rows(x: Float[Tensor, "row d_in"]) -> None:
    """Raise ValueError naming rows that hold a NaN or an infinity."""
    bad = ~x.isfinite().all(1)
    if bad.any():
        raise ValueError(f"x: {_name(bad)} hold NaN or infinity; drop or repair them")


@torch.no_grad()
def check_atoms(dictionary: Float[Tensor, "d_sae d_in"]) -> None:
    """Raise ValueError naming atoms that hold a NaN or an infinity, or whose norm is not 1, with the norms."""
    bad = ~dictionary.isfinite().all(1)
    if bad.any():
        raise ValueError(f"dictionary: {_name(bad)} hold NaN or infinity")
    norms = torch.linalg.vector_norm(dictionary, dim=1, dtype=torch.promote_types(dictionary.dtype, torch.float32))
    bad = (norms - 1).abs() > max(NORM_TOLERANCE, torch.finfo(dictionary.dtype).eps)
    if bad.any():
        found = ", ".join(f"{norm:.6g}" for norm in norms[bad][:NAMED_AT_MOST].tolist())
        raise ValueError(f"dictionary: {_name(bad)} must have norm 1, found {found}; scale the atoms to unit norm first")


@torch.no_grad()
def check_same(prepared: Float[Tensor, "d_sae d_in"], dictionary: Float[Tensor, "d_sae d_in"]) -> None:
    """Raise ValueError naming atoms of the dictionary that differ from those that were prepared."""
    differs = (prepared != dictionary).any(1)
    if differs.any():
        raise ValueError(f"dictionary: {_name(differs)} are not what was prepared; prepare again after a change")


def _name(bad: Bool[Tensor, "row"]) -> str:
    """`rows 3, 7 (2 of 10)`."""
    rows = bad.nonzero()[:NAMED_AT_MOST, 0].tolist()
    n_bad = int(bad.sum())
    more = ", ..." if n_bad > len(rows) else ""
    return f"rows {', '.join(str(row) for row in rows)}{more} ({n_bad} of {len(bad)})"
