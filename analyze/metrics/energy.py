"""How much a feature contributes: four published energies by name, and how many firings stand behind a number."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from thresher.analyze.metrics.needs import divide, need_items


class Energies(NamedTuple):
    """Four numbers that are all called energy, per feature; each with codes rescaled to unit atoms."""

    mean: Float[np.ndarray, " feature"]
    """E[z] (arXiv 2504.11695); NaN for features with negative codes, whose means cancel."""
    square: Float[np.ndarray, " feature"]
    """E[z^2] (arXiv 2602.06218): proof against signs, the default of this package."""
    length: Float[np.ndarray, " feature"]
    """||E[z] d|| (overcomplete's `energy_of_codes`); |E[z]|, so it cancels for signed codes without saying so."""
    square_length: Float[np.ndarray, " feature"]
    """||E[z] d||^2 (arXiv 2502.03714, eq. 9)."""


def measure_energies(
    n_rows: float,
    total: Float[np.ndarray, " feature"],
    square: Float[np.ndarray, " feature"],
    n_negative: Float[np.ndarray, " feature"],
    atom_norm: Float[np.ndarray, " feature"],
) -> Energies:
    """Energies from sums over the rows of one modality: sum of z, sum of z^2, rows with z < 0, and ||d_i||.

    Scaling a feature and its atom against each other (z * c, d / c) changes nothing. Raises AnalysisError: no rows.
    """
    need_items("energy", int(n_rows), 1, "rows")
    mean = total / n_rows * atom_norm
    return Energies(
        mean=np.where(n_negative > 0, np.nan, mean),
        square=square / n_rows * atom_norm**2,
        length=np.abs(mean),
        square_length=mean**2,
    )


def effective_sample_size(
    square: Float[np.ndarray, " feature"], fourth: Float[np.ndarray, " feature"]
) -> Float[np.ndarray, " feature"]:
    """(sum z^2)^2 / sum z^4 (Kish 1965, with weights z^2): how many equal firings the energy is worth; NaN for dead ones.

    At most the number of firings. An energy-weighted number has an error of about 1 / sqrt of it.
    """
    return divide(square**2, fourth)


def cumulate_energy(energy: Float[np.ndarray, " feature"]) -> Float[np.ndarray, " rank"]:
    """Share of the energy in the 1, 2, ... features of most energy; ends at 1. NaN everywhere when there is none."""
    return divide(np.cumsum(np.sort(energy)[::-1]), energy.sum())
