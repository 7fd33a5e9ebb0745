"""Which features carry the gap between the mean image and the mean text activation."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Gap(NamedTuple):
    """The modality gap of the reconstructions, divided exactly among the features."""

    norm: float
    """||Delta||, in the normalised units that the dictionary works in."""
    share: Float[np.ndarray, " feature"]
    """Signed share of each feature; sums to 1 (NaN when there is no gap)."""

    def features_for(self, part: float) -> int:
        """The smallest number of features whose shares add up to `part` of the gap; 0 when there is no gap."""
        if self.norm == 0:
            return 0
        return 1 + int(np.searchsorted(np.cumsum(np.sort(self.share)[::-1]), part - 1e-12))


def decompose_gap(
    mean_image: Float[np.ndarray, " feature"],
    mean_text: Float[np.ndarray, " feature"],
    dictionary: Float[np.ndarray, "feature d_in"],
) -> Gap:
    """g_i = (E_image[z_i] - E_text[z_i]) <d_i, u>, u = Delta / ||Delta||, Delta = E_image[x_hat] - E_text[x_hat].

    Exact for x_hat = b + z D: sum_i g_i = ||Delta||. A mean per modality that was taken off before encoding is no part of it.
    """
    difference = mean_image - mean_text
    delta = difference @ dictionary
    norm = float(np.linalg.norm(delta))
    if norm == 0:
        return Gap(0.0, np.full_like(difference, np.nan))
    return Gap(norm, difference * (dictionary @ delta) / norm**2)
