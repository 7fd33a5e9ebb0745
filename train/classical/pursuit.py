"""Online dictionary learning and K-SVD: dictionaries learned between rounds of orthogonal matching pursuit."""

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from thresher.config import config
from thresher.errors import ConfigError
from thresher.progress import progress
from thresher.train.classical.base import ClassicalFields, FittedCoder, IteratedFields, check_rows
from thresher.train.kernels import Codes, densify, orthogonal_pursue, sparse_decode

PURSUED_AT_ONCE = 4096
"""Rows that are encoded in one go."""


class PursuitCoder(FittedCoder):
    """Codes are those of orthogonal matching pursuit, values of both signs."""

    def __init__(self, settings: "OnlineDictionary | KSVD", d_in: int, generator: torch.Generator) -> None:
        super().__init__(d_in, settings, generator)
        self.settings = settings

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "row d_in"], k: int | None = None) -> Codes:
        """The picks of `k` steps, fitted together."""
        k = min(self.settings.k if k is None else k, self.d_sae)
        return orthogonal_pursue(x - self.bias, self.dictionary, k, sign="abs")[0]


@config
class OnlineDictionary(ClassicalFields):
    """Online dictionary learning (Mairal et al. 2010, JMLR 11:19, Alg. 1 and 2), with codes of k-sparse orthogonal matching
    pursuit in the place of the lasso's."""

    kind: Literal["dictionary_learning"] = "dictionary_learning"
    """Which method this is."""
    batch_size: int = 256
    """Rows between two updates of the dictionary."""
    passes: int = 3
    """Passes over the rows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 1 or self.passes < 1:
            raise ConfigError(f"batch_size={self.batch_size}, passes={self.passes}: give at least 1")


class OnlineDictionarySAE(PursuitCoder):
    """Atoms follow the accumulated products of codes with codes and with rows."""

    settings: OnlineDictionary

    @torch.no_grad()
    def fit(self, rows: Float[Tensor, "row d_in"], seed: int) -> None:
        """Start from random rows and take the passes."""
        check_rows(rows, self.d_sae, "dictionary_learning")
        settings, mean = self.settings, rows.mean(0)
        centred = rows - mean
        generator = torch.Generator().manual_seed(seed)
        atoms = draw_atoms(centred, self.d_sae, generator)
        codes_codes, codes_rows = atoms.new_zeros(self.d_sae, self.d_sae), torch.zeros_like(atoms)
        n_updates = settings.passes * -(-len(rows) // settings.batch_size)
        with progress("fit dictionary_learning", n_updates, "updates") as advance:
            for t, batch in enumerate(_draw_batches(centred, settings, generator), 1):
                dense = densify(orthogonal_pursue(batch, atoms, settings.k, sign="abs")[0], self.d_sae)
                keep = forget(t, settings.batch_size)
                codes_codes.mul_(keep).add_(dense.T @ dense / len(batch))
                codes_rows.mul_(keep).add_(dense.T @ batch / len(batch))
                update_atoms(atoms, codes_codes, codes_rows)
                advance()
        self.place(atoms, mean)


def _draw_batches(rows: Tensor, settings: OnlineDictionary, generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(settings.passes):
        order = torch.randperm(len(rows), generator=generator).to(rows.device)
        for chosen in order.split(settings.batch_size):
            yield rows[chosen]


def forget(t: int, batch_size: int) -> float:
    """What update t (from 1) keeps of the sums before it: theta / (theta + 1), with theta what they weigh (Mairal et al.,
    section 3.4.3, in units of a batch: the first batches count less, because they were encoded with a poor dictionary)."""
    theta = t * batch_size if t < batch_size else batch_size**2 + t - batch_size
    return (theta + 1 - batch_size) / (theta + 1)


def update_atoms(
    atoms: Float[Tensor, "d_sae d_in"], codes_codes: Float[Tensor, "d_sae d_sae"], codes_rows: Float[Tensor, "d_sae d_in"]
) -> None:
    """One round of block coordinate descent in place (Mairal et al., Alg. 2): with unit norm given, each used atom is the best
    for tr(D^T A D) / 2 - tr(D^T B), where A = codes_codes and B = codes_rows, the others as they are."""
    used = codes_codes.diagonal() > 1e-6 * codes_codes.diagonal().amax()
    for j in used.nonzero()[:, 0].tolist():
        wanted = codes_rows[j] - codes_codes[j] @ atoms + codes_codes[j, j] * atoms[j]
        norm = torch.linalg.vector_norm(wanted)
        atoms[j] = torch.where(norm > 0, wanted / norm.clamp_min(torch.finfo(atoms.dtype).tiny), atoms[j])


@config
class KSVD(IteratedFields):
    """Approximate K-SVD (Rubinstein, Zibulevsky & Elad, CS-2008-08, Technion) with orthogonal matching pursuit: each atom and
    its values take one power step towards the SVD of what they have to explain."""

    kind: Literal["ksvd"] = "ksvd"
    """Which method this is."""
    iterations: int = 20
    """Rounds of pursuit and of updates of all atoms."""


class KSVDSAE(PursuitCoder):
    """Atoms are updated one after the other together with the values of the rows that use them."""

    settings: KSVD

    @torch.no_grad()
    def fit(self, rows: Float[Tensor, "row d_in"], seed: int) -> None:
        """Start from random rows and take the iterations."""
        check_rows(rows, self.d_sae, "ksvd")
        mean = rows.mean(0)
        atoms = draw_atoms(rows - mean, self.d_sae, torch.Generator().manual_seed(seed))
        alternate(rows - mean, atoms, self.settings.k, self.settings.iterations)
        self.place(atoms, mean)


def draw_atoms(rows: Float[Tensor, "row d_in"], d_sae: int, generator: torch.Generator) -> Float[Tensor, "d_sae d_in"]:
    """Random rows at unit norm."""
    return functional.normalize(rows[torch.randperm(len(rows), generator=generator)[:d_sae].to(rows.device)], dim=1)


def alternate(rows: Float[Tensor, "row d_in"], atoms: Float[Tensor, "d_sae d_in"], k: int, iterations: int) -> list[float]:
    """Improve unit-norm atoms in place; the squared error after each iteration, which never grows.

    A row keeps its code where the pursuit, which is greedy, finds none that is better. Atoms that no row uses become those
    residuals that are largest: no error changes with them.
    """
    errors: list[float] = []
    codes, residual = _pursue_all(rows, atoms, k)
    with progress("fit ksvd", iterations, "iterations") as advance:
        for _ in range(iterations):
            found, left = _pursue_all(rows, atoms, k)
            is_better = (left.square().sum(1) < residual.square().sum(1))[:, None]
            codes = Codes(*(torch.where(is_better, new, old) for new, old in zip(found, codes, strict=True)))
            residual = torch.where(is_better, left, residual)
            _update_with_values(atoms, codes, residual)
            errors.append(float(residual.square().sum()))
            _replace_unused(atoms, codes, residual)
            residual = rows - sparse_decode(codes, atoms)
            advance(1, error=errors[-1])
    return errors


def _update_with_values(atoms: Tensor, codes: Codes, residual: Tensor) -> None:
    """For each atom in use: d <- E^T z at unit norm, z <- E d, with E what its users have left without it. In place."""
    flat = torch.where(codes.values != 0, codes.indices, len(atoms)).flatten()
    order, counts = flat.argsort(stable=True), flat.bincount(minlength=len(atoms) + 1)[: len(atoms)]
    values, k = codes.values.view(-1), codes.indices.shape[1]
    for j, entries in enumerate(order[: int(counts.sum())].split(counts.tolist())):
        if not len(entries):
            continue
        users, z = entries // k, values[entries]
        wanted = residual[users] + z[:, None] * atoms[j]
        direction = z @ wanted
        norm = torch.linalg.vector_norm(direction)
        if norm > 0:
            atoms[j] = direction / norm
        values[entries] = wanted @ atoms[j]
        residual[users] = wanted - values[entries][:, None] * atoms[j]


def _replace_unused(atoms: Tensor, codes: Codes, residual: Tensor) -> None:
    """Let atoms without a user be the largest residuals, one each. In place."""
    is_used = torch.zeros(len(atoms), dtype=torch.bool, device=atoms.device)
    is_used[codes.indices[codes.values != 0]] = True
    unused = (~is_used).nonzero()[:, 0][: len(residual)]
    sizes, worst = residual.square().sum(1).topk(len(unused))
    atoms[unused] = torch.where(sizes[:, None] > 0, functional.normalize(residual[worst], dim=1), atoms[unused])


def _pursue_all(rows: Tensor, atoms: Tensor, k: int) -> tuple[Codes, Tensor]:
    found = [orthogonal_pursue(part, atoms, k, sign="abs") for part in rows.split(PURSUED_AT_ONCE)]
    codes = Codes(torch.cat([each.indices for each, _ in found]), torch.cat([each.values for each, _ in found]))
    return codes, torch.cat([left for _, left in found])
